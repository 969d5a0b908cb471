//! `hone costs`.

use crate::{
    api::Api,
    args::{CostGroupArg, CostsArgs},
    context::Context,
    error::CliResult,
    keys, ui,
};
use chrono::{DateTime, NaiveDate, SecondsFormat, TimeDelta, Utc};
use std::time::Duration;
use wire::cost::{CostGroup, CostRecord, CostSum, CostSummary, CostTotal};

/// What a summary shows unless asked otherwise.
const RECENT: TimeDelta = TimeDelta::days(30);

pub async fn costs(context: &Context, args: CostsArgs) -> CliResult {
    let api = Api { client: context.client()? };
    let CostsArgs { by, job, package, from, to } = args;
    let from = from.or_else(|| job.is_none().then(|| Utc::now() - RECENT));
    let mut filter = String::new();
    for (name, time) in [("from", from), ("to", to)] {
        // `Z`: a plus sign would have to be escaped.
        let text = time.map(|t| format!("{name}={}&", t.to_rfc3339_opts(SecondsFormat::Micros, true)));
        filter.push_str(&text.unwrap_or_default());
    }
    if let Some(name) = &package {
        filter.push_str(&format!("package_id={}&", api.package(name).await?.id));
    }
    match job {
        Some(job) => {
            let id = api.find_job(&job).await?.id;
            let records = api.costs(&format!("{filter}job_id={id}&")).await?;
            context.ui.show(&records, |ui| ui.line(attempts(&records)));
        }
        None => {
            let summary = api.cost_summary(&format!("{filter}group_by={}", name(by))).await?;
            context.ui.show(&summary, |ui| ui.line(sums(&summary)));
        }
    }
    Ok(())
}

const fn name(group: CostGroupArg) -> &'static str {
    match group {
        CostGroupArg::Day => "day",
        CostGroupArg::Package => "package",
        CostGroupArg::User => "user",
        CostGroupArg::GpuConfig => "gpu_config",
    }
}

/// Attempts in the order in which they ran.
fn attempts(records: &[CostRecord]) -> String {
    if records.is_empty() {
        return "nothing yet; a job costs from its trainer's first report on".into();
    }
    let row = |r: &CostRecord| {
        let hardware = r.gpu_config.clone().unwrap_or_else(|| "this machine".into());
        let took = format!("{}{}", time(r.seconds), if r.finished_at.is_none() { ", running" } else { "" });
        let started = r.started_at.format("%Y-%m-%d %H:%M:%S").to_string();
        let price = format!("{}/h", ui::money(r.price_per_hour, &r.currency));
        vec![r.attempt.to_string(), started, took, hardware, price, ui::money(r.amount, &r.currency)]
    };
    let total = CostTotal {
        currency: records.first().map(|r| r.currency.clone()).unwrap_or_default(),
        amount: records.iter().map(|r| r.amount).sum(),
        seconds: records.iter().map(|r| r.seconds).sum(),
        jobs: 1,
    };
    let sum = vec![String::new(), "total".into(), time(total.seconds), String::new(), String::new(), {
        ui::money(total.amount, &total.currency)
    }];
    let rows = records.iter().rev().map(row).chain([sum]);
    ui::table(&["attempt", "started (utc)", "time", "hardware", "price", "cost"], &[0, 2, 4, 5], rows)
}

fn sums(summary: &CostSummary) -> String {
    if summary.groups.is_empty() {
        return "no attempt of a job started in this time; `--from` looks further back".into();
    }
    let (heading, none) = match summary.group_by {
        CostGroup::Day => ("day (utc)", ""),
        CostGroup::Package => ("package", "no package"),
        CostGroup::User => ("user", ""),
        CostGroup::GpuConfig => ("hardware", "this machine"),
    };
    let group = |s: &CostSum| {
        let label = s.label.clone().or_else(|| s.key.clone()).unwrap_or_else(|| none.into());
        vec![label, s.jobs.to_string(), time(s.seconds), ui::money(s.amount, &s.currency)]
    };
    let total =
        |t: &CostTotal| vec!["total".into(), t.jobs.to_string(), time(t.seconds), ui::money(t.amount, &t.currency)];
    let rows = summary.groups.iter().map(group).chain(summary.total.iter().map(total));
    ui::table(&[heading, "jobs", "time", "cost"], &[1, 2, 3], rows)
}

fn time(seconds: f64) -> String {
    ui::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A day (its beginning in UTC), a time of RFC 3339, or how long ago.
pub fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(chrono::NaiveTime::MIN).and_utc());
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = keys::duration(text).map_err(|_| {
        format!("`{text}` is no time; give a day such as 2026-11-01, a time of RFC 3339, or how long ago, such as 12h or 90d")
    })?;
    Utc::now().checked_sub_signed(TimeDelta::seconds(ago.into())).ok_or_else(|| format!("`{text}` is too long ago"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_instants_or_ages() {
        let day = instant("2026-11-01").unwrap();
        assert_eq!(day.to_rfc3339(), "2026-11-01T00:00:00+00:00");
        assert_eq!(instant("2026-11-01T02:00:00+02:00").unwrap(), day);
        let then = instant("2h").unwrap();
        let ago = Utc::now() - then;
        assert!((7200..7210).contains(&ago.num_seconds()), "{ago}");
        for wrong in ["", "2026-13-01", "yesterday", "5", "2026-11-01T02:00"] {
            assert!(instant(wrong).is_err(), "{wrong}");
        }
    }
}
