//! Cursor pages: newest first, stable while rows are added.
//!
//! "Behind the cursor" is written `at <= X AND (at < X OR id < Y)`: the first part is what an index is entered by. With
//! `at < X OR (at = X AND id < Y)` Postgres reads every row before the page.

use crate::error::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use std::str::FromStr;
use wire::{Page, problem::Code};

const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 200;

/// `?cursor=&limit=` of a list.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
}

impl PageQuery {
    pub fn limit(&self) -> Result<i64> {
        match self.limit.unwrap_or(DEFAULT_LIMIT) {
            limit @ 1..=MAX_LIMIT => Ok(limit.into()),
            other => {
                Err(Error::refused(Code::Invalid, format!("limit: must be between 1 and {MAX_LIMIT}, not {other}")))
            }
        }
    }

    /// Where the page starts: after the row with this time and key.
    pub fn after<K: FromStr>(&self) -> Result<Option<(DateTime<Utc>, K)>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let parse = || {
            let (micros, key) = cursor.split_once('_')?;
            Some((DateTime::from_timestamp_micros(micros.parse().ok()?)?, key.parse().ok()?))
        };
        let invalid =
            || Error::refused(Code::Invalid, "cursor: is not a cursor of this list; leave it out to start again");
        parse().map(Some).ok_or_else(invalid)
    }
}

/// Order of a list. Rows that change while pages are read may move between pages of `updated_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, utoipa::ToSchema)]
pub enum Sort {
    /// Newest first.
    #[default]
    #[serde(rename = "-created_at")]
    Newest,
    #[serde(rename = "created_at")]
    Oldest,
    #[serde(rename = "-updated_at")]
    LastChanged,
    #[serde(rename = "updated_at")]
    FirstChanged,
}

impl Sort {
    /// Whether times of change count, and not of creation.
    #[must_use]
    pub const fn by_change(self) -> bool {
        matches!(self, Self::LastChanged | Self::FirstChanged)
    }
}

/// Makes a page of `rows`, which hold one row more than `limit` when there is a next page.
pub fn page<R, K: std::fmt::Display, V>(
    mut rows: Vec<R>,
    limit: i64,
    position: impl Fn(&R) -> (DateTime<Utc>, K),
    view: impl Fn(R) -> V,
) -> Page<V> {
    let limit = usize::try_from(limit).unwrap_or_default();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|last| {
        let (at, key) = position(last);
        format!("{}_{key}", at.timestamp_micros())
    });
    Page { items: rows.into_iter().map(view).collect(), next_cursor }
}

/// Orders the boxed query `$rows` of `$table` and skips to where the page starts. A macro, because the type of a
/// query differs by table.
macro_rules! sorted {
    ($rows:ident, $table:ident, $query:expr, $sort:expr) => {
        let after = $query.after::<uuid::Uuid>()?;
        match $sort {
            $crate::store::page::Sort::Newest => {
                if let Some((at, id)) = after {
                    $rows =
                        $rows.filter($table::created_at.le(at).and($table::created_at.lt(at).or($table::id.lt(id))));
                }
                $rows = $rows.order(($table::created_at.desc(), $table::id.desc()));
            }
            $crate::store::page::Sort::Oldest => {
                if let Some((at, id)) = after {
                    $rows =
                        $rows.filter($table::created_at.ge(at).and($table::created_at.gt(at).or($table::id.gt(id))));
                }
                $rows = $rows.order(($table::created_at.asc(), $table::id.asc()));
            }
            $crate::store::page::Sort::LastChanged => {
                if let Some((at, id)) = after {
                    $rows =
                        $rows.filter($table::updated_at.le(at).and($table::updated_at.lt(at).or($table::id.lt(id))));
                }
                $rows = $rows.order(($table::updated_at.desc(), $table::id.desc()));
            }
            $crate::store::page::Sort::FirstChanged => {
                if let Some((at, id)) = after {
                    $rows =
                        $rows.filter($table::updated_at.ge(at).and($table::updated_at.gt(at).or($table::id.gt(id))));
                }
                $rows = $rows.order(($table::updated_at.asc(), $table::id.asc()));
            }
        }
    };
}
pub(crate) use sorted;
