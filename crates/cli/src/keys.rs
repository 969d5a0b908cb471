//! `hone keys`.

use crate::{
    api::Api,
    args::{CreateKeyArgs, KeysCommand},
    context::Context,
    error::{CliError, CliResult, Exit},
    ui,
};
use wire::account::{CreateKey, KeyView, Scope};

pub async fn run(context: &Context, command: KeysCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        KeysCommand::Ls => ls(context, &api).await,
        KeysCommand::Create(args) => create(context, &api, args).await,
        KeysCommand::Revoke { key } => revoke(context, &api, &key).await,
    }
}

async fn ls(context: &Context, api: &Api) -> CliResult {
    let keys = api.keys().await?;
    context.ui.show(&keys, |ui| {
        let row = |k: &KeyView| {
            let used = k.last_used_at.map_or_else(|| "never".to_owned(), ui::ago);
            vec![k.name.clone(), format!("{}…", k.prefix), scopes(&k.scopes), used, state(k), k.id.to_string()]
        };
        ui.line(ui::table(&["name", "key", "scopes", "used", "state", "id"], &[], keys.iter().map(row)));
    });
    Ok(())
}

fn scopes(scopes: &[Scope]) -> String {
    scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" ")
}

fn state(key: &KeyView) -> String {
    let now = chrono::Utc::now();
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(at)) if at <= now => "expired".to_owned(),
        (None, Some(at)) => format!("until {}", at.format("%Y-%m-%d %H:%M")),
        (None, None) => "good".to_owned(),
    }
}

async fn create(context: &Context, api: &Api, args: CreateKeyArgs) -> CliResult {
    let scopes = (!args.scope.is_empty()).then_some(args.scope);
    let body = CreateKey { name: args.name, scopes, expires_at: None, expires_in: args.expires, user_id: None };
    let made = api.create_key(&body).await?;
    context.ui.show(&made, |ui| {
        // The key alone on standard output, so that it can go into a variable.
        ui.note(format!("made {}: {}; it is shown only now", made.view.name, self::scopes(&made.view.scopes)));
        ui.line(&made.key);
    });
    Ok(())
}

async fn revoke(context: &Context, api: &Api, wanted: &str) -> CliResult {
    let keys = api.keys().await?;
    let shown = wanted.trim_end_matches('…');
    let is_it = |k: &&KeyView| k.id.to_string() == wanted || k.name == wanted || k.prefix == shown;
    let mut found: Vec<&KeyView> = keys.iter().filter(is_it).collect();
    if found.len() > 1 {
        // Names are not unique; what is over already is not meant.
        found.retain(|k| k.revoked_at.is_none());
    }
    match found.as_slice() {
        [] => Err(CliError::new(Exit::NotFound, format!("no key `{wanted}`")).hint("`hone keys ls` lists yours")),
        [key] => {
            api.revoke_key(key.id).await?;
            context.ui.show(&serde_json::json!({"revoked": key.id}), |ui| {
                ui.line(format!("revoked {} ({}…)", key.name, key.prefix));
            });
            Ok(())
        }
        several => {
            let message = format!("{} keys are called `{wanted}`", several.len());
            Err(CliError::invalid(message).hint("give the id; `hone keys ls` shows it"))
        }
    }
}

/// Seconds of a time such as `90d` or `12h`.
pub fn duration(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no time; give a number with s, m, h, d or w, such as 90d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1_u32,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|s| *s > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(duration("90d"), Ok(7_776_000));
        assert_eq!(
            (duration("5m"), duration("1w"), duration("3h"), duration("7s")),
            (Ok(300), Ok(604_800), Ok(10_800), Ok(7))
        );
        for wrong in ["", "d", "90", "0d", "-1d", "1y", "99999999w", "9ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
