//! Which requests break, and how.

use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// What happens to one request. Bodies are counted without their head; in a raw proxy a piece of bytes is all body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It arrives later.
    Delay(Duration),
    /// The proxy answers in the server's place, with this status and JSON body; HTTP only.
    Answer(u16, String),
    /// It does not arrive: the connection breaks before.
    LoseRequest,
    /// It is carried out, and the connection breaks instead of a reply.
    LoseReply,
    /// It is carried out and answered, and a little later carried out once more; HTTP only.
    Duplicate,
    /// It waits until another request has been answered, but not for long; HTTP only.
    Reorder,
    /// The connection breaks after so many bytes of its body. A shorter one passes.
    CutRequest(u64),
    /// The connection breaks after so many bytes of the reply's body. A shorter one passes.
    CutReply(u64),
    /// One bit of its body is wrong.
    FlipRequest,
    /// One bit of the reply's body is wrong.
    FlipReply,
    /// It is taken, and nothing ever comes back.
    Hang,
}

impl Fault {
    /// Under which it is counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Answer(..) => "answer",
            Self::LoseRequest => "lose_request",
            Self::LoseReply => "lose_reply",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::CutRequest(_) => "cut_request",
            Self::CutReply(_) => "cut_reply",
            Self::FlipRequest => "flip_request",
            Self::FlipReply => "flip_reply",
            Self::Hang => "hang",
        }
    }
}

/// A fault for every request, until it is narrowed down.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    /// In the request's first line, or anywhere in a piece of bytes.
    containing: Vec<u8>,
    chance: f64,
    left: Arc<AtomicU32>,
}

impl Rule {
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self { fault, containing: Vec::new(), chance: 1.0, left: Arc::new(AtomicU32::new(u32::MAX)) }
    }

    /// Only requests whose first line contains `text` (`POST /training/jobs`); raw: pieces that contain it.
    #[must_use]
    pub fn on(mut self, text: &str) -> Self {
        self.containing = text.into();
        self
    }

    /// Only this share of them, 0 to 1.
    #[must_use]
    pub const fn chance(mut self, chance: f64) -> Self {
        self.chance = chance;
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Arc::new(AtomicU32::new(times));
        self
    }
}

/// A rule that applies to a request.
#[derive(Debug)]
pub(super) struct Hit {
    pub fault: Fault,
    /// For what is random about the fault itself.
    pub random: u64,
    left: Arc<AtomicU32>,
}

impl Hit {
    /// Uses the rule up by one; false when nothing is left of it.
    pub(super) fn take(&self) -> bool {
        let less = |left: u32| if left == u32::MAX { Some(left) } else { left.checked_sub(1) };
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

/// The first rule that hits request `number`, which starts with `head`.
pub(super) fn pick(rules: &[Rule], seed: u64, number: u64, head: &[u8]) -> Option<Hit> {
    for (place, rule) in (0_u64..).zip(rules) {
        let text = &rule.containing;
        let matches = text.is_empty() || head.windows(text.len()).any(|window| window == text);
        if !matches || rule.left.load(Ordering::SeqCst) == 0 {
            continue;
        }
        // Mixed by the generator's own seeding, so that neighbours have nothing in common.
        let stream = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((number << 8) | place);
        let mut random = StdRng::seed_from_u64(stream);
        if random.random::<f64>() < rule.chance {
            return Some(Hit { fault: rule.fault.clone(), random: random.random(), left: Arc::clone(&rule.left) });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(rules: &[Rule], seed: u64) -> Vec<u64> {
        (0..1000).filter(|n| pick(rules, seed, *n, b"POST /a HTTP/1.1").is_some()).collect()
    }

    #[test]
    fn the_seed_says_which_requests_are_hit_and_the_chance_how_many() {
        let rules = [Rule::new(Fault::LoseReply).chance(0.2)];
        let (first, other) = (hits(&rules, 1), hits(&rules, 2));
        assert_eq!(first, hits(&rules, 1));
        assert_ne!(first, other);
        assert!((140..260).contains(&first.len()), "{}", first.len());
    }

    #[test]
    fn a_rule_is_used_up_and_the_next_one_follows() {
        let rules = [Rule::new(Fault::Hang).on("POST /a").times(1), Rule::new(Fault::LoseReply)];
        let hit = pick(&rules, 1, 0, b"POST /a").unwrap();
        assert_eq!(hit.fault, Fault::Hang);
        assert!(hit.take() && !hit.take());
        assert_eq!(pick(&rules, 1, 1, b"POST /a").unwrap().fault, Fault::LoseReply);
        assert_eq!(pick(&rules, 1, 1, b"GET /b").unwrap().fault, Fault::LoseReply);
    }
}
