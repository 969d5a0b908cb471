//! Lists: `?after=&limit=` in, `{object, data, first_id, last_id, has_more}` out.

use super::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// One page of a list.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct List<T> {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<T>,
    #[schema(required)]
    pub first_id: Option<String>,
    #[schema(required)]
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl<T> List<T> {
    /// A page of `items`, which hold one more than `limit` when there is a next page.
    pub fn page(mut items: Vec<T>, limit: i64, id: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or_default();
        let has_more = items.len() > limit;
        items.truncate(limit);
        let (first_id, last_id) = (items.first().map(&id), items.last().map(&id));
        Self { object: "list", data: items, first_id, last_id, has_more }
    }
}

/// Fields of a query string. What is not asked for here is ignored, such as Azure's `api-version`.
#[derive(Debug, Clone)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `limit`, `default` when absent, from 1 to `most`.
    pub fn limit(&self, default: i64, most: i64) -> Result<i64> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        match text.parse::<i64>() {
            Ok(limit) if (1..=most).contains(&limit) => Ok(limit),
            _ => {
                let message = format!("limit must be a number from 1 to {most}, not '{text}'");
                Err(Error::invalid("limit", "invalid_value", message))
            }
        }
    }

    /// `metadata[key]=value`, or `metadata=null` for what has none.
    #[must_use]
    pub fn metadata(&self) -> Option<Metadata> {
        if self.get("metadata") == Some("null") {
            return Some(Metadata::None);
        }
        let pair = |(name, value): (&String, &String)| {
            let key = name.strip_prefix("metadata[")?.strip_suffix(']')?;
            Some((key.to_owned(), value.clone()))
        };
        let pairs: BTreeMap<String, String> = self.0.iter().filter_map(pair).collect();
        (!pairs.is_empty()).then_some(Metadata::Some(pairs))
    }
}

/// A filter on metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metadata {
    None,
    Some(BTreeMap<String, String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_its_ends_and_whether_there_is_more() {
        let page = List::page(vec![3, 2, 1], 2, i32::to_string);
        assert_eq!((page.data, page.first_id.as_deref(), page.last_id.as_deref()), (vec![3, 2], Some("3"), Some("2")));
        assert!(page.has_more);
        let page = List::page(Vec::<i32>::new(), 2, i32::to_string);
        assert_eq!((page.first_id, page.has_more), (None, false));
    }

    #[test]
    fn metadata_filters_are_read_from_brackets() {
        let query = Query::of("limit=5&metadata%5Bteam%5D=a+b&metadata[x]=1&api-version=2024-10-21");
        let wanted = [("team".to_owned(), "a b".to_owned()), ("x".to_owned(), "1".to_owned())].into();
        assert_eq!(query.metadata(), Some(Metadata::Some(wanted)));
        assert_eq!(query.limit(20, 100).unwrap(), 5);
        assert_eq!(Query::of("metadata=null").metadata(), Some(Metadata::None));
        assert_eq!(Query::of("").metadata(), None);
        assert!(Query::of("limit=0").limit(20, 100).is_err());
    }
}
