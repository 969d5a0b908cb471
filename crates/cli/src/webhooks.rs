//! `hone webhooks`.

use crate::{
    api::{Api, by_id},
    args::{CreateWebhookArgs, DeliveryStatusArg, WebhooksCommand},
    context::Context,
    error::{CliError, CliResult, Exit},
    ui::{self, Style, paint},
};
use std::time::{Duration, Instant};
use wire::webhook::{
    ALL_EVENTS, CreateWebhook, DeliveryStatus, DeliveryView, UpdateWebhook, WebhookSecret, WebhookView,
};

/// How long `test` waits for the first attempt; a request may take 15 s.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// Of the id of a message.
const SHORT: usize = 18;
/// Messages looked through for the one that was just sent, or a beginning of an id.
const SEARCHED: usize = 400;

pub async fn run(context: &Context, command: WebhooksCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        WebhooksCommand::Ls => ls(context, &api).await,
        WebhooksCommand::Create(args) => create(context, &api, args).await,
        WebhooksCommand::Test { webhook } => test(context, &api, &webhook).await,
        WebhooksCommand::Rotate { webhook } => {
            let id = find(&api, &webhook).await?.id;
            let made = api.rotate_webhook(id).await?;
            secret(context, &made, "a new secret; the one before signs too for 24 hours");
            Ok(())
        }
        WebhooksCommand::Deliveries { webhook, status, limit } => {
            deliveries(context, &api, &webhook, status, limit.into()).await
        }
        WebhooksCommand::Redeliver { webhook, delivery } => redeliver(context, &api, &webhook, &delivery).await,
        WebhooksCommand::Enable { webhook } => switch(context, &api, &webhook, true).await,
        WebhooksCommand::Disable { webhook } => switch(context, &api, &webhook, false).await,
        WebhooksCommand::Rm { webhook } => {
            let webhook = find(&api, &webhook).await?;
            api.delete_webhook(webhook.id).await?;
            context.ui.show(&serde_json::json!({"deleted": webhook.id}), |ui| {
                ui.line(format!("deleted the webhook to {}", webhook.url));
            });
            Ok(())
        }
    }
}

async fn ls(context: &Context, api: &Api) -> CliResult {
    let webhooks = api.webhooks().await?;
    context.ui.show(&webhooks, |ui| {
        if webhooks.is_empty() {
            return ui.line("no webhooks; `hone webhooks create URL` adds one");
        }
        let row = |w: &WebhookView| {
            let last = w.last_delivery_at.map_or_else(|| "never".to_owned(), ui::ago);
            vec![short(w.id.to_string()), w.url.clone(), events(&w.events), state(w), last, w.description.clone()]
        };
        let header = ["id", "address", "events", "state", "last success", "description"];
        ui.line(ui::table(&header, &[], webhooks.iter().map(row)));
    });
    Ok(())
}

fn events(events: &[String]) -> String {
    if events.iter().any(|e| e == ALL_EVENTS) { "everything".into() } else { events.join(" ") }
}

fn state(webhook: &WebhookView) -> String {
    match (webhook.enabled, &webhook.disabled_reason, webhook.failures) {
        (true, _, 0) => paint("good", Style::Green),
        (true, _, 1) => paint("1 failure", Style::Yellow),
        (true, _, n) => paint(&format!("{n} failures"), Style::Yellow),
        (false, Some(why), _) => paint(&format!("disabled: {why}"), Style::Red),
        (false, None, _) => "disabled".into(),
    }
}

/// The time of an id.
fn short(id: String) -> String {
    id.chars().take(13).collect()
}

async fn create(context: &Context, api: &Api, args: CreateWebhookArgs) -> CliResult {
    let CreateWebhookArgs { url, event, description } = args;
    let events = (!event.is_empty()).then_some(event);
    let made = api.create_webhook(&CreateWebhook { url, description, events }).await?;
    let told =
        format!("{} goes to {}; this is the secret that verifies it", events_sentence(&made.webhook), made.webhook.url);
    secret(context, &made, &told);
    Ok(())
}

fn events_sentence(webhook: &WebhookView) -> String {
    match webhook.events.iter().any(|e| e == ALL_EVENTS) {
        true => "every notification".into(),
        false => format!("every notification of {}", webhook.events.join(" and ")),
    }
}

/// The secret alone on standard output, so that it can go into a variable.
fn secret(context: &Context, made: &WebhookSecret, told: &str) {
    context.ui.show(made, |ui| {
        ui.note(format!("{told}; it is shown only now"));
        ui.line(&made.secret);
    });
}

/// The webhook that `text` names: an id, the unique beginning of one, or an address that only one has.
async fn find(api: &Api, text: &str) -> CliResult<WebhookView> {
    let webhooks = api.webhooks().await?;
    let mut at: Vec<&WebhookView> = webhooks.iter().filter(|w| w.url == text).collect();
    match (at.pop(), at.len()) {
        (Some(one), 0) => Ok(one.clone()),
        (Some(_), more) => {
            let message = format!("{} webhooks have the address {text}", more.saturating_add(1));
            Err(CliError::invalid(message).hint("give the id; `hone webhooks ls` shows it"))
        }
        (None, _) => by_id(&webhooks, |w| w.id.to_string(), text, "webhook").cloned().map_err(|e| match e.exit {
            Exit::NotFound => CliError::new(
                Exit::NotFound,
                format!("no webhook has the address, or an id that begins with, `{text}`"),
            )
            .hint("`hone webhooks ls` lists yours"),
            _ => e,
        }),
    }
}

async fn test(context: &Context, api: &Api, text: &str) -> CliResult {
    let webhook = find(api, text).await?;
    let mut message = api.test_webhook(webhook.id).await?;
    let begun = Instant::now();
    // A first attempt that failed leaves it pending, with what went wrong.
    while message.status == DeliveryStatus::Pending && message.last_error.is_none() {
        if begun.elapsed() > PATIENCE {
            let why = format!("no attempt at {} has ended within {} s", webhook.url, PATIENCE.as_secs());
            return Err(CliError::failed(why).hint("`hone webhooks deliveries` tells what becomes of it"));
        }
        tokio::time::sleep(POLL).await;
        let recent = api.deliveries(webhook.id, None, SEARCHED).await?;
        let found = recent.into_iter().find(|d| d.id == message.id);
        message = found.ok_or_else(|| CliError::failed("the test message is not among the deliveries any more"))?;
    }
    if message.status != DeliveryStatus::Delivered {
        let why = message.last_error.unwrap_or_default();
        return Err(CliError::failed(format!("{} did not take the message: {why}", webhook.url))
            .hint("it is tried again until it is taken; `hone webhooks deliveries` tells how that goes"));
    }
    context.ui.show(&message, |ui| {
        let status = message.response_status.map(|s| format!(" and answered {s}")).unwrap_or_default();
        ui.line(format!("{} took the message{status}", webhook.url));
    });
    Ok(())
}

async fn deliveries(
    context: &Context,
    api: &Api,
    text: &str,
    status: Option<DeliveryStatusArg>,
    limit: usize,
) -> CliResult {
    let webhook = find(api, text).await?;
    let name = status.map(|s| match s {
        DeliveryStatusArg::Pending => "pending",
        DeliveryStatusArg::Delivered => "delivered",
        DeliveryStatusArg::Failed => "failed",
    });
    let messages = api.deliveries(webhook.id, name, limit).await?;
    context.ui.show(&messages, |ui| {
        if messages.is_empty() {
            return ui.line("nothing was sent there; `hone webhooks test` sends a message");
        }
        let row = |d: &DeliveryView| {
            let next = d.next_attempt_at.filter(|_| d.status == DeliveryStatus::Pending);
            let next = next.map(|at| format!("next {}", at.format("%Y-%m-%d %H:%M"))).unwrap_or_default();
            let reply = d.response_status.map(|s| s.to_string()).unwrap_or_default();
            let why = [d.last_error.clone().unwrap_or_default(), next].join("  ").trim().replace('\n', " ");
            vec![
                d.id.to_string().chars().take(SHORT).collect(),
                d.event_type.clone(),
                outcome(d.status),
                d.attempts.to_string(),
                reply,
                ui::ago(d.created_at),
                why,
            ]
        };
        let header = ["id", "event", "status", "attempts", "reply", "created", ""];
        ui.line(ui::table(&header, &[3, 4], messages.iter().map(row)));
    });
    Ok(())
}

fn outcome(status: DeliveryStatus) -> String {
    match status {
        DeliveryStatus::Pending => paint("pending", Style::Yellow),
        DeliveryStatus::Delivered => paint("delivered", Style::Green),
        DeliveryStatus::Failed => paint("failed", Style::Red),
    }
}

async fn redeliver(context: &Context, api: &Api, text: &str, delivery: &str) -> CliResult {
    let webhook = find(api, text).await?;
    let recent = api.deliveries(webhook.id, None, SEARCHED).await?;
    let id = by_id(&recent, |d| d.id.to_string(), delivery, "message")?.id;
    let message = api.redeliver(webhook.id, id).await?;
    context.ui.show(&message, |ui| ui.line(format!("{} is sent to {} again", message.event_type, webhook.url)));
    Ok(())
}

async fn switch(context: &Context, api: &Api, text: &str, on: bool) -> CliResult {
    let id = find(api, text).await?.id;
    let webhook = api.update_webhook(id, &UpdateWebhook { enabled: Some(on), ..UpdateWebhook::default() }).await?;
    context.ui.show(&webhook, |ui| {
        let what = if on { "is sent to again" } else { "is sent nothing any more" };
        ui.line(format!("{} {what}", webhook.url));
    });
    Ok(())
}
