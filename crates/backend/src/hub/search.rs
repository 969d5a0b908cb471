//! Looking for models on the Hub.

use super::client::{HubClient, segment};
use crate::error::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use wire::{Page, hub::HubModel, problem::Code};

/// How long an answer is good, and how many are kept.
const FRESH: Duration = Duration::from_secs(300);
const KEPT: usize = 128;
const MAX_LIMIT: u16 = 100;
/// Longest text of a filter in bytes.
const MAX_TEXT: usize = 200;
const FIELDS: [&str; 11] = [
    "author",
    "sha",
    "lastModified",
    "createdAt",
    "private",
    "gated",
    "downloads",
    "likes",
    "library_name",
    "pipeline_tag",
    "tags",
];

/// The newest answers.
#[derive(Default, Debug)]
pub struct Cache(Mutex<VecDeque<(String, Instant, Page<HubModel>)>>);

impl Cache {
    fn get(&self, path: &str) -> Option<Page<HubModel>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, at, _)| at.elapsed() < FRESH);
        kept.iter().find(|(known, ..)| known == path).map(|(.., page)| page.clone())
    }

    fn put(&self, path: String, page: Page<HubModel>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((path, Instant::now(), page));
    }
}

/// Highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HubSort {
    Trending,
    Downloads,
    Likes,
    LastModified,
    CreatedAt,
}

impl HubSort {
    const fn theirs(self) -> &'static str {
        match self {
            Self::Trending => "trendingScore",
            Self::Downloads => "downloads",
            Self::Likes => "likes",
            Self::LastModified => "lastModified",
            Self::CreatedAt => "createdAt",
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SearchQuery {
    /// Part of the name.
    pub search: Option<String>,
    pub author: Option<String>,
    /// Such as `text-generation`.
    pub pipeline_tag: Option<String>,
    /// Such as `transformers`.
    pub library: Option<String>,
    /// `min:1B,max:8B`; either may be left out.
    pub num_parameters: Option<String>,
    /// Only gated models, or only others.
    pub gated: Option<bool>,
    /// `trending` when absent.
    pub sort: Option<HubSort>,
    /// Models per page, 1 to 100; 20 when absent.
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<u16>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl SearchQuery {
    /// What many use to generate text and this registry can hold.
    #[must_use]
    pub fn popular(limit: Option<u16>) -> Self {
        Self {
            pipeline_tag: Some("text-generation".into()),
            library: Some("safetensors".into()),
            sort: Some(HubSort::Downloads),
            limit,
            ..Self::default()
        }
    }

    fn path(&self) -> Result<String> {
        let limit = self.limit.unwrap_or(20);
        if !(1..=MAX_LIMIT).contains(&limit) {
            let detail = format!("limit: must be between 1 and {MAX_LIMIT}, not {limit}");
            return Err(Error::refused(Code::Invalid, detail));
        }
        let gated = self.gated.map(|g| g.to_string());
        let texts = [
            ("search", &self.search),
            ("author", &self.author),
            ("pipeline_tag", &self.pipeline_tag),
            ("filter", &self.library),
            ("num_parameters", &self.num_parameters),
            ("gated", &gated),
        ];
        let sort = self.sort.unwrap_or(HubSort::Trending).theirs();
        let mut path = format!("/api/models?sort={sort}&limit={limit}");
        for (name, text) in texts {
            let Some(text) = text.as_deref().filter(|t| !t.is_empty()) else { continue };
            if text.len() > MAX_TEXT {
                return Err(Error::refused(Code::Invalid, format!("{name}: may have at most {MAX_TEXT} bytes")));
            }
            path += &format!("&{name}={}", segment(text));
        }
        for field in FIELDS {
            path += &format!("&expand={field}");
        }
        if let Some(cursor) = &self.cursor {
            if cursor.len() > 2000 {
                return Err(Error::refused(Code::Invalid, "cursor: is not a cursor of this list"));
            }
            path += &format!("&cursor={}", segment(cursor));
        }
        Ok(path)
    }
}

/// A model in the Hub's own spelling.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Theirs {
    id: String,
    author: Option<String>,
    sha: Option<String>,
    last_modified: Option<DateTime<Utc>>,
    created_at: Option<DateTime<Utc>>,
    #[serde(default)]
    private: bool,
    /// `false`, `"auto"` or `"manual"`.
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default)]
    downloads: u64,
    #[serde(default)]
    likes: u64,
    #[serde(rename = "library_name")]
    library_name: Option<String>,
    #[serde(rename = "pipeline_tag")]
    pipeline_tag: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
}

impl From<Theirs> for HubModel {
    fn from(theirs: Theirs) -> Self {
        Self {
            author: theirs.author.or_else(|| theirs.id.split_once('/').map(|(owner, _)| owner.to_owned())),
            id: theirs.id,
            sha: theirs.sha,
            last_modified: theirs.last_modified,
            created_at: theirs.created_at,
            private: theirs.private,
            gated: !matches!(theirs.gated, serde_json::Value::Null | serde_json::Value::Bool(false)),
            downloads: theirs.downloads,
            likes: theirs.likes,
            library_name: theirs.library_name,
            pipeline_tag: theirs.pipeline_tag,
            tags: theirs.tags,
        }
    }
}

/// A page of models, at most some minutes old.
pub async fn search(hub: &HubClient, query: &SearchQuery) -> Result<Page<HubModel>> {
    let path = query.path()?;
    if let Some(page) = hub.cache.get(&path) {
        return Ok(page);
    }
    let answer = hub.json::<Vec<Theirs>>(&path).await?;
    let cursor =
        answer.next.and_then(|url| url.query_pairs().find(|(k, _)| k == "cursor").map(|(_, v)| v.into_owned()));
    let page = Page { items: answer.value.into_iter().map(Into::into).collect(), next_cursor: cursor };
    hub.cache.put(path, page.clone());
    Ok(page)
}
