//! `hone notifications`.

use crate::{
    api::{Api, by_id},
    args::NotificationsCommand,
    context::Context,
    error::{CliError, CliResult, Exit},
    stream::{FIRST_WAIT, LONGEST_WAIT, PATIENCE, Refusal, SILENCE, lines, refusal},
    ui::{self, Style, paint},
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::Method;
use std::time::{Duration, Instant};
use wire::notification::{NotificationView, Severity, StreamedNotification};

/// Notifications looked through for a beginning of an id.
const SEARCHED: usize = 2000;
/// Of an id: its time and some of its random part, for two may be written at the same moment.
const SHORT: usize = 18;

pub async fn run(context: &Context, command: NotificationsCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        NotificationsCommand::Ls { unread, follow: true, limit } => follow(context, &api, unread, limit.into()).await,
        NotificationsCommand::Ls { unread, follow: false, limit } => ls(context, &api, unread, limit.into()).await,
        NotificationsCommand::Read { ids, all: false } => read(context, &api, &ids).await,
        NotificationsCommand::Read { all: true, .. } => {
            let left = api.read_notifications().await?;
            context.ui.show(&left, |ui| ui.line("all notifications are read"));
            Ok(())
        }
    }
}

async fn ls(context: &Context, api: &Api, unread: bool, limit: usize) -> CliResult {
    let notifications = api.notifications(unread, limit).await?;
    context.ui.show(&notifications, |ui| {
        if notifications.is_empty() {
            return ui.line(if unread { "nothing unread" } else { "no notifications yet" });
        }
        let row = |n: &NotificationView| {
            let title = if n.read_at.is_none() { paint(&n.title, Style::Bold) } else { n.title.clone() };
            let id = n.id.to_string().chars().take(SHORT).collect();
            let read = if n.read_at.is_none() { "" } else { "read" };
            vec![id, ui::ago(n.created_at), severity(n.severity), title, read.into(), n.body.clone()]
        };
        let header = ["id", "when", "", "what", "", "more"];
        ui.line(ui::table(&header, &[], notifications.iter().map(row)));
    });
    Ok(())
}

/// The newest ones, oldest first, then what comes, each once; goes on behind the last one after a broken connection.
async fn follow(context: &Context, api: &Api, unread: bool, limit: usize) -> CliResult {
    let mut live = Live { last: None, contact: Instant::now(), wait: FIRST_WAIT };
    let mut open = live.open(api).await?;
    // What came since the stream was opened is in the list as well.
    let mut listed: Vec<NotificationView> = api.notifications(unread, limit).await?;
    listed.reverse();
    listed.iter().for_each(|n| line(context, n));
    loop {
        let why = match tokio::time::timeout(SILENCE, open.next()).await {
            Ok(Some(Ok(text))) => {
                if let Some(news) = live.heard(&text)?
                    && !listed.iter().any(|n| n.id == news.id)
                {
                    line(context, &news);
                }
                continue;
            }
            Ok(Some(Err(why))) => why,
            Ok(None) => "the server closed the stream".to_owned(),
            Err(_) => "the server fell silent".to_owned(),
        };
        tracing::debug!(why, "connecting again");
        open = live.open(api).await?;
    }
}

type Lines = BoxStream<'static, Result<String, String>>;

/// A live stream, and where it was.
struct Live {
    /// Id of the last message, which comes before its data.
    last: Option<i64>,
    contact: Instant,
    wait: Duration,
}

impl Live {
    /// Connects, and tries again while nobody is there.
    async fn open(&mut self, api: &Api) -> CliResult<Lines> {
        loop {
            let why = match connect(api, self.last).await {
                Ok(lines) => return Ok(lines),
                Err(Refusal::Final(e)) => return Err(e),
                Err(Refusal::Transport) => return Err(CliError::failed("this server has no live notifications")),
                Err(Refusal::Away(why)) => why,
            };
            if self.contact.elapsed() > PATIENCE {
                let message = format!("no contact with Hone for {} s: {why}", PATIENCE.as_secs());
                return Err(CliError::new(Exit::Unreachable, message));
            }
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
    }

    /// The notification in a line of the stream, if it has one.
    fn heard(&mut self, line: &str) -> CliResult<Option<NotificationView>> {
        (self.contact, self.wait) = (Instant::now(), FIRST_WAIT);
        if let Some(id) = line.strip_prefix("id:") {
            self.last = id.trim().parse().ok().or(self.last);
        }
        match line.strip_prefix("data:").map(str::trim) {
            None | Some("{}") => Ok(None),
            Some(text) => {
                let read = serde_json::from_str::<StreamedNotification>(text);
                let unread = |e| CliError::failed(format!("a notification cannot be read: {e}"));
                read.map(|n| Some(n.notification)).map_err(unread)
            }
        }
    }
}

async fn connect(api: &Api, last: Option<i64>) -> Result<Lines, Refusal> {
    let request = api.client.request(Method::GET, "/api/notifications/stream").map_err(|e| Refusal::Final(e.into()))?;
    let mut request = request.header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    let reply = request.send().await.map_err(|e| Refusal::Away(e.to_string()))?;
    let status = reply.status().as_u16();
    if status != 200 {
        return Err(refusal(status, Some(&reply.bytes().await.unwrap_or_default())));
    }
    Ok(lines(reply.bytes_stream().map_err(|e| e.to_string())).boxed())
}

fn line(context: &Context, n: &NotificationView) {
    if context.ui.json {
        return context.ui.json_line(n);
    }
    let at = paint(&n.created_at.format("%Y-%m-%d %H:%M:%S").to_string(), Style::Dim);
    let body = n.body.replace('\n', " ");
    context.ui.line(format!("{at}  {}  {}  {body}", severity(n.severity), paint(&n.title, Style::Bold)));
}

fn severity(severity: Severity) -> String {
    match severity {
        Severity::Info => "info".into(),
        Severity::Warning => paint("warning", Style::Yellow),
        Severity::Error => paint("error", Style::Red),
    }
}

async fn read(context: &Context, api: &Api, ids: &[String]) -> CliResult {
    let known = api.notifications(false, SEARCHED).await?;
    // All of them first: none is marked when one is wrong.
    let mut wanted = Vec::new();
    for text in ids {
        let found = by_id(&known, |n| n.id.to_string(), text, "notification");
        wanted.push(found.map_err(|e| match e.hint {
            Some(_) => e,
            None => e.hint("`hone notifications ls` lists them"),
        })?);
    }
    let mut done = Vec::new();
    for notification in wanted {
        done.push(api.read_notification(notification.id).await?);
    }
    context.ui.show(&done, |ui| done.iter().for_each(|n| ui.line(format!("read: {}", n.title))));
    Ok(())
}
