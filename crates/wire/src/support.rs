//! Which base models each method can train. The trainer's registry holds the same names; a test there compares.

use crate::{
    config::Method,
    problem::{Code, FieldError, Problem},
};

/// Kinds of base models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Predicts the next token.
    Decoder,
    /// Reads a text as a whole and tells its class.
    Encoder,
}

/// First entries of `architectures` in `config.json` that can be trained, in order.
pub const ARCHITECTURES: &[(&str, Family)] = &[
    ("BertForMaskedLM", Family::Encoder),
    ("BertForSequenceClassification", Family::Encoder),
    ("DistilBertForMaskedLM", Family::Encoder),
    ("DistilBertForSequenceClassification", Family::Encoder),
    ("Gemma2ForCausalLM", Family::Decoder),
    ("Gemma3ForCausalLM", Family::Decoder),
    ("LlamaForCausalLM", Family::Decoder),
    ("MistralForCausalLM", Family::Decoder),
    ("Phi3ForCausalLM", Family::Decoder),
    ("Qwen2ForCausalLM", Family::Decoder),
    ("Qwen3ForCausalLM", Family::Decoder),
    ("RobertaForMaskedLM", Family::Encoder),
    ("RobertaForSequenceClassification", Family::Encoder),
    ("XLMRobertaForMaskedLM", Family::Encoder),
    ("XLMRobertaForSequenceClassification", Family::Encoder),
];

impl Family {
    /// Whether `method` can train models of this kind.
    #[must_use]
    pub const fn suits(self, method: Method) -> bool {
        match method {
            Method::Sft | Method::Full | Method::Pretrain | Method::Dpo => matches!(self, Self::Decoder),
            Method::Classification => matches!(self, Self::Encoder),
        }
    }
}

/// What kind of model an architecture is; `None` for one that cannot be trained.
#[must_use]
pub fn family(architecture: &str) -> Option<Family> {
    ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map(|(_, family)| *family)
}

/// Refuses a base model that `method` cannot train.
///
/// # Errors
/// [`Code::Unsupported`], naming the field and what would do.
pub fn check(architecture: &str, method: Method) -> Result<(), Problem> {
    let named = |family: Family| {
        let names: Vec<&str> = ARCHITECTURES.iter().filter(|(_, f)| *f == family).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let (path, message, suggestion) = match family(architecture) {
        Some(family) if family.suits(method) => return Ok(()),
        Some(Family::Encoder) => (
            "method",
            format!("this method trains models that predict tokens, and `{architecture}` is an encoder"),
            format!("use `classification`, or a base model of {}", named(Family::Decoder)),
        ),
        Some(Family::Decoder) => (
            "method",
            format!("`classification` needs an encoder, and `{architecture}` predicts tokens"),
            format!("use another method, or a base model of {}", named(Family::Encoder)),
        ),
        None => (
            "model",
            format!("the architecture `{architecture}` is not supported"),
            format!("use one of {}, {}", named(Family::Decoder), named(Family::Encoder)),
        ),
    };
    let problem = Problem::new(Code::Unsupported, format!("training configuration: {path}: {message}; {suggestion}"));
    Err(problem.with_errors(vec![FieldError::new(path, message).suggest(Some(suggestion))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_named_with_what_does() {
        assert_eq!(check("LlamaForCausalLM", Method::Dpo), Ok(()));
        assert_eq!(check("BertForMaskedLM", Method::Classification), Ok(()));
        let detail = |architecture, method| check(architecture, method).map_err(|p| p.detail).unwrap_err();
        assert!(
            detail("BertForMaskedLM", Method::Sft).contains("method: this method trains models that predict tokens")
        );
        assert!(
            detail("Qwen2ForCausalLM", Method::Classification).contains("use another method, or a base model of Bert")
        );
        assert!(
            detail("GPT2LMHeadModel", Method::Sft)
                .contains("model: the architecture `GPT2LMHeadModel` is not supported")
        );
    }
}
