//! Costs, notifications, webhooks and keys.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use wire::account::Scope;

const COSTS: &str = "\
Examples:
  hone costs                               by day, of the last 30 days
  hone costs --by package --from 2026-11-01
  hone costs --job latest                  what each attempt of one job has cost

The price is that of the hardware a job was created with (--gpu-config).
An attempt that runs counts up to its trainer's last report.";

#[derive(Debug, Args)]
#[command(after_help = COSTS)]
pub struct CostsArgs {
    /// What costs are added up by
    #[arg(long, value_enum, default_value_t = CostGroupArg::Day, conflicts_with = "job")]
    pub by: CostGroupArg,
    /// The attempts of one job: its id, the beginning of one, or `latest`
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
    /// Only of jobs launched from versions of this package
    #[arg(long, value_name = "NAME")]
    pub package: Option<String>,
    /// Attempts that started then or later: a day (UTC), a time of RFC 3339, or how long ago, such as 12h or 90d
    /// [default: 30d, or the beginning with --job]
    #[arg(long, value_name = "TIME", value_parser = crate::costs::instant)]
    pub from: Option<DateTime<Utc>>,
    /// Attempts that started before this
    #[arg(long, value_name = "TIME", value_parser = crate::costs::instant)]
    pub to: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CostGroupArg {
    /// Days of UTC in which attempts started
    Day,
    Package,
    /// Everybody, for an administrator
    User,
    /// The hardware
    GpuConfig,
}

const NOTIFICATIONS: &str = "\
Examples:
  hone notifications ls --unread
  hone notifications ls --follow              go on with what comes, until Ctrl-C
  hone notifications read 0198c2f4-71b3       mark one as read, by the beginning of its id
  hone notifications read --all";

#[derive(Debug, Subcommand)]
#[command(after_help = NOTIFICATIONS)]
pub enum NotificationsCommand {
    /// List notifications, newest first
    #[command(after_help = NOTIFICATIONS)]
    Ls {
        /// Only those you have not read
        #[arg(long)]
        unread: bool,
        /// Go on with what comes, oldest first
        #[arg(long, short)]
        follow: bool,
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Mark notifications as read
    #[command(after_help = NOTIFICATIONS)]
    Read {
        /// Ids, or beginnings of ids
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
        ids: Vec<String>,
        /// Every one
        #[arg(long)]
        all: bool,
    },
}

const WEBHOOKS: &str = "\
Examples:
  hone webhooks create https://ci.example.com/hone --event training.job.failed
  export SECRET=$(hone webhooks create https://ci.example.com/hone)
  hone webhooks test https://ci.example.com/hone   send a message and tell how it went
  hone webhooks deliveries 0198c2f4                what was sent, and what came back

WEBHOOK is a webhook's id, the beginning of one, or its address.
Any library of https://www.standardwebhooks.com verifies messages with the secret.";

#[derive(Debug, Subcommand)]
#[command(after_help = WEBHOOKS)]
pub enum WebhooksCommand {
    /// List your webhooks, newest first
    Ls,
    /// Add a webhook; its secret is printed once and never again
    #[command(after_help = WEBHOOKS)]
    Create(CreateWebhookArgs),
    /// Send a message without news, and tell how it went
    #[command(after_help = WEBHOOKS)]
    Test { webhook: String },
    /// Make a new secret, which is printed once; the one before signs too for 24 hours
    #[command(after_help = WEBHOOKS)]
    Rotate { webhook: String },
    /// List what was sent in the last 30 days, newest first
    #[command(after_help = WEBHOOKS)]
    Deliveries {
        webhook: String,
        /// Only those of this status
        #[arg(long, value_enum)]
        status: Option<DeliveryStatusArg>,
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Send a message again
    #[command(after_help = WEBHOOKS)]
    Redeliver {
        webhook: String,
        /// Its id, or the beginning of one, as `deliveries` shows it
        delivery: String,
    },
    /// Send to a webhook again that was disabled
    #[command(after_help = WEBHOOKS)]
    Enable { webhook: String },
    /// Send nothing more to a webhook, and give up what waits for it
    #[command(after_help = WEBHOOKS)]
    Disable { webhook: String },
    /// Delete a webhook
    #[command(after_help = WEBHOOKS)]
    Rm { webhook: String },
}

#[derive(Debug, Args)]
pub struct CreateWebhookArgs {
    /// Where messages are posted to: https, and a public address unless the operator allows others
    pub url: String,
    /// What is sent there, such as training.job.failed; can be repeated [default: everything]
    #[arg(long, value_name = "KIND")]
    pub event: Vec<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeliveryStatusArg {
    /// Waits for its first or next attempt
    Pending,
    Delivered,
    /// Given up
    Failed,
}

const KEYS: &str = "\
Examples:
  hone keys create ci --scope jobs:read --scope jobs:write --expires 90d
  export HONE_API_KEY=$(hone keys create notebook)
  hone keys revoke ci

A key does at most what the key that makes it does.";

#[derive(Debug, Subcommand)]
#[command(after_help = KEYS)]
pub enum KeysCommand {
    /// List your keys, newest first
    Ls,
    /// Make a key; it is printed once and never again
    #[command(after_help = KEYS)]
    Create(CreateKeyArgs),
    /// Revoke a key: the next request with it is refused
    #[command(after_help = KEYS)]
    Revoke {
        /// Name, id, or the first characters that `ls` shows
        key: String,
    },
}

#[derive(Debug, Args)]
pub struct CreateKeyArgs {
    /// What it is for
    pub name: String,
    /// What it may do, such as jobs:read; can be repeated [default: as much as the key that makes it]
    #[arg(long, value_name = "SCOPE")]
    pub scope: Vec<Scope>,
    /// When it ends: 90d, 12h, 30m [default: never]
    #[arg(long, value_name = "TIME", value_parser = crate::keys::duration)]
    pub expires: Option<u32>,
}
