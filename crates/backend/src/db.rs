//! The database: migrations, the pool, and the only two ways to a connection.
//!
//! Invariant: code outside this file gets a connection only inside a transaction that runs as `hone_app`
//! with a tenant, or as `hone_system`. The login role itself is never used for queries. A future that is
//! dropped in mid-transaction takes its connection with it: the pool does not hand out a connection with
//! an open transaction.

use crate::{
    audit,
    error::{Error, Result},
};
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{
    AnsiTransactionManager, AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
    pooled_connection::{
        AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
        deadpool::{Object, Pool},
    },
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use futures::FutureExt;
use service::{Env, EnvError, fail_point};
use std::{str::FromStr, time::Duration};
use tokio_postgres::NoTls;
use wire::ids::UserId;

/// The migrations of this build.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Advisory lock that serialises migrations of several starting backends (arbitrary, but fixed).
const MIGRATION_LOCK: i64 = 0x686f_6e65;

/// A connection inside a transaction.
pub type Conn = AsyncPgConnection;

/// How to reach the database and how long to wait for it.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// `postgres://…`
    pub url: secrecy::SecretString,
    pub pool_size: usize,
    pub connect_timeout: Duration,
    /// Longest wait for a free connection; then 503.
    pub wait_timeout: Duration,
    pub statement_timeout: Duration,
    /// Longest wait for a lock; then 503.
    pub lock_timeout: Duration,
}

impl DbConfig {
    #[must_use]
    pub const fn new(url: secrecy::SecretString) -> Self {
        Self {
            url,
            pool_size: 16,
            connect_timeout: Duration::from_secs(3),
            wait_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(15),
            lock_timeout: Duration::from_secs(5),
        }
    }

    /// Reads `DATABASE_POOL_SIZE`, `DATABASE_WAIT_SECONDS` and `DATABASE_LOCK_SECONDS`.
    pub fn from_env(url: secrecy::SecretString, env: &Env) -> Result<Self, EnvError> {
        let base = Self::new(url);
        let seconds = |name: &str, default: Duration| -> Result<Duration, EnvError> {
            Ok(env.parse::<std::num::NonZeroU16>(name)?.map_or(default, |s| Duration::from_secs(s.get().into())))
        };
        Ok(Self {
            pool_size: env
                .parse::<std::num::NonZeroU16>("DATABASE_POOL_SIZE")?
                .map_or(base.pool_size, |n| n.get().into()),
            wait_timeout: seconds("DATABASE_WAIT_SECONDS", base.wait_timeout)?,
            lock_timeout: seconds("DATABASE_LOCK_SECONDS", base.lock_timeout)?,
            ..base
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("DATABASE_URL is not a valid Postgres URL")]
    Url(#[source] tokio_postgres::Error),
    #[error("cannot connect to Postgres; check that it runs and that DATABASE_URL is right")]
    Connect(#[source] ConnectionError),
    #[error("cannot migrate the database")]
    Migrate(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot build the connection pool")]
    Pool(#[source] diesel_async::pooled_connection::deadpool::BuildError),
}

/// An async closure from a connection whose future can move between threads.
///
/// It names the closure's future, which a bound on [`AsyncFnOnce`] alone cannot do yet.
pub trait Work<C, T>: AsyncFnOnce(C) -> T + FnOnce(C) -> <Self as Work<C, T>>::Fut {
    type Fut: Future<Output = T>;
}

impl<F, C, T, Fut> Work<C, T> for F
where
    F: AsyncFnOnce(C) -> T + FnOnce(C) -> Fut,
    Fut: Future<Output = T>,
{
    type Fut = Fut;
}

/// Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Db {
    pool: Pool<Conn>,
    postgres: tokio_postgres::Config,
    wait_timeout: Duration,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("pool", &self.pool.status()).finish_non_exhaustive()
    }
}

impl Db {
    /// Builds the pool; connections are made when they are needed. Must be called inside the runtime that
    /// will drive the connections, and that runtime must outlive the pool.
    pub fn new(config: &DbConfig) -> Result<Self, DbError> {
        let postgres = session(config, config.statement_timeout)?;
        let runtime = tokio::runtime::Handle::current();
        let (settings, timeout) = (postgres.clone(), config.connect_timeout);
        let mut manager = ManagerConfig::<Conn>::default();
        manager.recycling_method = RecyclingMethod::Fast;
        manager.custom_setup = Box::new(move |_| {
            // HTTP workers have runtimes of their own; a connection driven by one of them would die with it.
            let made = runtime.spawn(connect(settings.clone(), timeout));
            async { made.await.unwrap_or_else(|e| Err(ConnectionError::BadConnection(e.to_string()))) }.boxed()
        });
        let manager = AsyncDieselConnectionManager::new_with_config("", manager);
        let pool = Pool::builder(manager).max_size(config.pool_size).build().map_err(DbError::Pool)?;
        Ok(Self { pool, postgres, wait_timeout: config.wait_timeout })
    }

    /// Runs `work` in a transaction that sees and writes only what belongs to `user`. It commits when `work`
    /// returns `Ok`, and rolls back otherwise.
    pub async fn tenant<'a, T, F>(&self, user: UserId, work: F) -> Result<T>
    where
        for<'r> F: AsyncFnOnce(&'r mut Conn) -> Result<T> + Work<&'r mut Conn, Result<T>, Fut: Send> + Send + 'a,
        T: Send,
    {
        let begin = format!("BEGIN; SET LOCAL ROLE hone_app; SELECT set_config('app.user_id', '{user}', true)");
        self.transaction(&begin, Some(user), work).await
    }

    /// Runs `work` in a transaction that sees every tenant: for login, callbacks and reconcilers only.
    pub async fn system<'a, T, F>(&self, work: F) -> Result<T>
    where
        for<'r> F: AsyncFnOnce(&'r mut Conn) -> Result<T> + Work<&'r mut Conn, Result<T>, Fut: Send> + Send + 'a,
        T: Send,
    {
        self.transaction("BEGIN; SET LOCAL ROLE hone_system", None, work).await
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        let mut conn = self.get().await?;
        Ok(conn.batch_execute("SELECT 1").await?)
    }

    /// Settings for a connection outside the pool, as LISTEN needs one.
    #[must_use]
    pub const fn postgres(&self) -> &tokio_postgres::Config {
        &self.postgres
    }

    async fn transaction<'a, T, F>(&self, begin: &str, tenant: Option<UserId>, work: F) -> Result<T>
    where
        for<'r> F: AsyncFnOnce(&'r mut Conn) -> Result<T> + Work<&'r mut Conn, Result<T>, Fut: Send> + Send + 'a,
        T: Send,
    {
        let mut object = self.get().await?;
        let conn: &mut Conn = &mut object;
        // One round trip for BEGIN and the context: no query can come between them.
        AnsiTransactionManager::begin_transaction_sql(conn, begin).await?;
        let done = match work(&mut *conn).await {
            Ok(value) => audit::note(conn, tenant).await.map(|record| (value, record)),
            Err(error) => Err(error),
        };
        match done {
            Ok((value, record)) => {
                fail_point!("commit.before");
                AnsiTransactionManager::commit_transaction(conn).await?;
                fail_point!("commit.after");
                if let Some(record) = record {
                    record.committed();
                }
                Ok(value)
            }
            Err(error) => {
                if let Err(rollback) = AnsiTransactionManager::rollback_transaction(conn).await {
                    // The pool sees the broken transaction and throws the connection away.
                    tracing::warn!(error = %rollback, "rollback failed; dropping the connection");
                }
                Err(error)
            }
        }
    }

    async fn get(&self) -> Result<Object<Conn>> {
        let started = std::time::Instant::now();
        let got = tokio::time::timeout(self.wait_timeout, self.pool.get()).await;
        metrics::histogram!("db_pool_wait_seconds").record(started.elapsed().as_secs_f64());
        match got {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(error)) => Err(Error::DatabaseDown(error.into())),
            Err(_) => Err(Error::DatabaseDown("no free database connection in time".into())),
        }
    }
}

/// Connection settings from the URL plus the session's timeouts.
fn session(config: &DbConfig, statement_timeout: Duration) -> Result<tokio_postgres::Config, DbError> {
    use secrecy::ExposeSecret;
    let mut postgres = tokio_postgres::Config::from_str(config.url.expose_secret()).map_err(DbError::Url)?;
    let given = postgres.get_options().unwrap_or_default();
    let options = format!(
        "{given} -c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=60000",
        statement_timeout.as_millis(),
        config.lock_timeout.as_millis()
    );
    postgres.options(options.trim()).connect_timeout(config.connect_timeout).application_name("hone-backend");
    Ok(postgres)
}

async fn connect(postgres: tokio_postgres::Config, timeout: Duration) -> ConnectionResult<Conn> {
    let bad = |e: &dyn std::error::Error| ConnectionError::BadConnection(service::error::chain(e));
    let made = tokio::time::timeout(timeout, postgres.connect(NoTls)).await;
    let (client, connection) = made.map_err(|e| bad(&e))?.map_err(|e| bad(&e))?;
    Conn::try_from_client_and_connection(client, connection).await
}

/// What [`migrate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Apply everything pending.
    Up,
    /// Revert everything.
    Down,
}

/// Migrates under an advisory lock, on a connection of its own without a statement timeout. Returns how
/// many migrations ran.
pub async fn migrate(config: &DbConfig, direction: Direction) -> Result<usize, DbError> {
    let postgres = session(config, Duration::ZERO)?;
    let mut conn = connect(postgres, config.connect_timeout).await.map_err(DbError::Connect)?;
    // The session ends with this function, and the lock with the session. Another backend may be migrating
    // for long, so waiting for it has no limit.
    let lock = format!("SET lock_timeout = 0; SELECT pg_advisory_lock({MIGRATION_LOCK})");
    conn.batch_execute(&lock).await.map_err(|e| DbError::Migrate(e.into()))?;
    let run = move || {
        let mut harness = AsyncMigrationHarness::new(conn);
        match direction {
            Direction::Up => harness.run_pending_migrations(MIGRATIONS).map(|done| done.len()),
            Direction::Down => harness.revert_all_migrations(MIGRATIONS).map(|done| done.len()),
        }
    };
    let done = tokio::task::spawn_blocking(run).await.map_err(|e| DbError::Migrate(e.into()))?;
    done.map_err(DbError::Migrate)
}
