//! Sequence classification: the classes of a dataset, and how well they are told apart.
//!
//! A text is one sequence whose only target is its class, at the first token. So the loss is a mean over texts,
//! and everything else is as for any other model.

use super::{Setup, TrainError, data::Batch, model::CausalLm, step};
use candle_core::{D, Tensor};
use dataset::{Label, ReadError, Row, Rows};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};
use wire::{config::Method, dataset::DatasetFormat, event::metric};

/// Beside an adapter with a classifier: the names of its classes, which PEFT has no place for.
pub const CLASSES_FILE: &str = "classes.json";

/// The classes of a task, by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classes {
    names: Vec<String>,
    /// Whether rows give numbers rather than names.
    numbers: bool,
}

impl Classes {
    /// Those of the dataset: as the model has them if it is a classifier already, else names in sorted order.
    /// `None` for other methods.
    ///
    /// # Errors
    /// `DatasetInvalid` for rows that cannot be read, names beside numbers, or classes that the model does not
    /// know.
    pub fn of(setup: &Setup) -> Result<Option<Self>, TrainError> {
        if setup.config.method != Method::Classification {
            return Ok(None);
        }
        let mut found = BTreeSet::new();
        for path in [Some(&setup.train), setup.validation.as_ref()].into_iter().flatten() {
            read_labels(path, setup.format, &mut found)?;
        }
        Self::choose(&found, known_to(&setup.model_dir)).map(Some)
    }

    fn choose(found: &BTreeSet<Label>, known: Option<Vec<String>>) -> Result<Self, TrainError> {
        let highest = found.iter().filter_map(|l| if let Label::Class(n) = l { Some(*n) } else { None }).max();
        let names: Vec<String> =
            found.iter().filter_map(|l| if let Label::Name(n) = l { Some(n.clone()) } else { None }).collect();
        let numbers = highest.is_some();
        if numbers && !names.is_empty() {
            return Err(TrainError::data("the labels are names in some rows and numbers in others: use one kind"));
        }
        if let Some(known) = known {
            // Names like LABEL_0 are what Transformers writes when nobody gave any.
            let anonymous = known.iter().enumerate().all(|(i, name)| *name == generic(i));
            let fits = match highest {
                Some(highest) => usize::try_from(highest).is_ok_and(|n| n < known.len()),
                None if anonymous => names.len() == known.len(),
                None => names.iter().all(|n| known.contains(n)),
            };
            if !fits {
                return Err(TrainError::data(format!(
                    "the dataset's labels are not the model's, which knows {}; use those, or a base model without a classifier",
                    known.join(", ")
                )));
            }
            return Ok(Self { names: if anonymous && !numbers { names } else { known }, numbers });
        }
        let names = match highest {
            Some(highest) => (0..=usize::try_from(highest).unwrap_or(usize::MAX).max(1)).map(generic).collect(),
            None => names,
        };
        if names.len() < 2 {
            return Err(TrainError::data("every row has the same label, so there is nothing to tell apart"));
        }
        Ok(Self { names, numbers })
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Names by number.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of the class that a row's label means.
    #[must_use]
    pub fn index(&self, label: &Label) -> Option<u32> {
        match label {
            Label::Class(n) => usize::try_from(*n).ok().filter(|i| self.numbers && *i < self.names.len()).map(|_| *n),
            Label::Name(name) => {
                let at = self.names.iter().position(|n| n == name).filter(|_| !self.numbers)?;
                u32::try_from(at).ok()
            }
        }
    }

    /// The classes of an adapter with a classifier for `count` of them: as they were written beside it, else as the
    /// base model has them.
    #[must_use]
    pub fn of_adapter(adapter: &Path, model: &Path, count: usize) -> Self {
        let beside = std::fs::read(adapter.join(CLASSES_FILE)).ok();
        let beside = beside.and_then(|text| class_names(serde_json::from_slice::<Value>(&text).ok()?.get("id2label")?));
        let known = [beside, known_to(model)].into_iter().flatten().find(|names| names.len() == count);
        Self { names: known.unwrap_or_else(|| (0..count).map(generic).collect()), numbers: false }
    }

    /// `id2label` and `label2id`, as Transformers has them in `config.json`.
    #[must_use]
    pub fn labels(&self) -> Map<String, Value> {
        let numbered = || self.names.iter().enumerate();
        let by_number = numbered().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let by_name = numbered().map(|(i, n)| (n.clone(), json!(i))).collect();
        Map::from_iter([("id2label".to_owned(), by_number), ("label2id".to_owned(), by_name)])
    }

    /// `config.json` of a trained classifier, from that of the base model.
    #[must_use]
    pub fn describe(&self, base: &Value) -> Value {
        let mut config = base.clone();
        let architecture = base.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("Bert");
        let kind = architecture.split("For").next().unwrap_or(architecture);
        let classifier = format!("{kind}ForSequenceClassification");
        if let Some(map) = config.as_object_mut() {
            map.extend(self.labels());
            map.insert("architectures".into(), json!([classifier]));
            map.insert("problem_type".into(), json!("single_label_classification"));
        }
        config
    }
}

fn generic(class: usize) -> String {
    format!("LABEL_{class}")
}

fn read_labels(path: &Path, format: DatasetFormat, found: &mut BTreeSet<Label>) -> Result<(), TrainError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = File::open(path).map_err(|e| TrainError::io("open the dataset", path, e))?;
    for row in Rows::new(file, format) {
        match row {
            Ok(Row::Labelled(row)) => {
                found.insert(row.label);
            }
            Ok(_) => {
                return Err(TrainError::data(format!("{name}: `classification` needs rows with `text` and `label`")));
            }
            Err(ReadError::Io(e)) => return Err(TrainError::io("read the dataset", path, e)),
            Err(e @ ReadError::Row(_)) => return Err(TrainError::data(format!("{name}: {e}")).caused_by(e)),
        }
    }
    Ok(())
}

/// Class names of a model that is a classifier already.
fn known_to(model_dir: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(model_dir.join("config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let architecture = config.pointer("/architectures/0")?.as_str()?;
    if !architecture.ends_with("ForSequenceClassification") {
        return None;
    }
    // Transformers leaves out what is its default, two classes.
    let Some(names) = config.get("id2label") else { return Some((0..2).map(generic).collect()) };
    class_names(names)
}

/// Names by number, from `{"0": name, …}`.
fn class_names(id2label: &Value) -> Option<Vec<String>> {
    let names = id2label.as_object()?;
    (0..names.len()).map(|i| names.get(&i.to_string())?.as_str().map(str::to_owned)).collect()
}

/// How often a class was taken for another, by `(true class, predicted class)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<(u32, u32), u64>);

impl Tally {
    /// Adds the texts of `batch`; returns their summed loss.
    ///
    /// # Errors
    /// Tensor errors only.
    pub fn add(&mut self, model: &dyn CausalLm, batch: &Batch) -> Result<f64, TrainError> {
        let x = step::hidden(model, batch, &batch.pass())?;
        let starts: Vec<u32> = batch.segments.ranges().map(|r| u32::try_from(r.start).unwrap_or(u32::MAX)).collect();
        let truth = batch.segments.ranges().filter_map(|r| batch.targets.get(r.start).copied());
        let first = x.index_select(&Tensor::from_slice(&starts, starts.len(), x.device())?, 0)?; // (N, C) -> (B, C)
        let predicted: Vec<u32> = model.logits(&first)?.argmax(D::Minus1)?.to_vec1()?;
        for pair in truth.zip(predicted) {
            let n = self.0.entry(pair).or_default();
            *n = n.saturating_add(1);
        }
        Ok(model.token_losses(&x, &batch.targets)?.iter().map(|l| f64::from(*l)).sum())
    }

    /// Accuracy, and F1: of class 1 where there are two, else the mean over the classes (scikit-learn's `binary`
    /// and `macro`).
    #[must_use]
    pub fn metrics(&self, classes: usize) -> BTreeMap<String, f64> {
        #[expect(clippy::as_conversions, reason = "counts are far below 2^53")]
        let count = |keep: &dyn Fn(u32, u32) -> bool| {
            self.0.iter().filter(|((truth, said), _)| keep(*truth, *said)).map(|(_, n)| *n).sum::<u64>() as f64
        };
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let f1 = |class: u32| {
            let hits = count(&|truth, said| truth == class && said == class);
            share(2.0 * hits, count(&|truth, _| truth == class) + count(&|_, said| said == class))
        };
        let mean_f1 = if classes == 2 {
            f1(1)
        } else {
            let seen: BTreeSet<u32> = self.0.keys().flat_map(|(truth, said)| [*truth, *said]).collect();
            let total: f64 = seen.iter().map(|class| f1(*class)).sum();
            share(total, seen.iter().map(|_| 1.0).sum())
        };
        let accuracy = share(count(&|truth, said| truth == said), count(&|_, _| true));
        BTreeMap::from([(metric::EVAL_ACCURACY.to_owned(), accuracy), (metric::EVAL_F1.to_owned(), mean_f1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[&str]) -> BTreeSet<Label> {
        all.iter().map(|l| l.parse().map_or_else(|_| Label::Name((*l).to_owned()), Label::Class)).collect()
    }

    #[test]
    fn classes_are_the_model_s_or_sorted_names() {
        let fresh = Classes::choose(&labels(&["pos", "neg"]), None).unwrap();
        assert_eq!((fresh.count(), fresh.index(&Label::Name("pos".into()))), (2, Some(1)));
        assert_eq!(fresh.index(&Label::Class(1)), None);
        let numbered = Classes::choose(&labels(&["3", "0"]), None).unwrap();
        assert_eq!(
            (numbered.count(), numbered.index(&Label::Class(3)), numbered.index(&Label::Class(4))),
            (4, Some(3), None)
        );
        let known = Some(vec!["sad".to_owned(), "glad".into(), "mad".into()]);
        let model = Classes::choose(&labels(&["mad", "glad"]), known.clone()).unwrap();
        assert_eq!((model.count(), model.index(&Label::Name("mad".into()))), (3, Some(2)));
        assert_eq!(model.describe(&json!({"a": 1}))["id2label"]["1"], "glad");
        let error = Classes::choose(&labels(&["bad"]), known).unwrap_err();
        assert!(error.message.contains("which knows sad, glad, mad; use those"), "{error}");
        assert!(Classes::choose(&labels(&["1", "bad"]), None).unwrap_err().message.contains("use one kind"));
        assert!(Classes::choose(&labels(&["bad"]), None).unwrap_err().message.contains("nothing to tell apart"));
        let anonymous = Some(vec![generic(0), generic(1)]);
        assert_eq!(Classes::choose(&labels(&["b", "a"]), anonymous).unwrap().names, ["a", "b"]);
    }

    /// Expected values: sklearn.metrics.accuracy_score and f1_score (1.9), `binary` and `macro`.
    #[test]
    fn accuracy_and_f1_are_scikit_learn_s() {
        let tally = |truth: &[u32], said: &[u32]| {
            let mut tally = Tally::default();
            for pair in truth.iter().copied().zip(said.iter().copied()) {
                *tally.0.entry(pair).or_default() += 1;
            }
            tally
        };
        let close = |metrics: &BTreeMap<String, f64>, accuracy: f64, f1: f64| {
            assert!((metrics[metric::EVAL_ACCURACY] - accuracy).abs() < 1e-12, "{metrics:?}");
            assert!((metrics[metric::EVAL_F1] - f1).abs() < 1e-12, "{metrics:?}");
        };
        close(&tally(&[1, 0, 1, 1, 0], &[1, 0, 0, 1, 1]).metrics(2), 0.6, 2.0 / 3.0);
        close(&tally(&[0, 1, 2, 2, 1, 0], &[0, 2, 2, 2, 1, 1]).metrics(3), 4.0 / 6.0, 0.655_555_555_555_555_5);
        close(&Tally::default().metrics(2), 0.0, 0.0);
    }
}
