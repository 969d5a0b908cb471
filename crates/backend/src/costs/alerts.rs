//! At which shares of a budget users are told.

use service::{Env, EnvError};

const VARIABLE: &str = "BUDGET_ALERTS";

/// Percentages of a budget, 1 to 100: bit n stands for n percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds(u128);

impl Default for Thresholds {
    fn default() -> Self {
        Self([50, 80, 95, 100].into_iter().fold(0, |bits, percent: u32| bits | 1 << percent))
    }
}

impl Thresholds {
    /// Reads `BUDGET_ALERTS`, such as `50,80,95,100`; `none` for no alerts.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let Some(list) = env.get(VARIABLE) else { return Ok(Self::default()) };
        if list == "none" {
            return Ok(Self(0));
        }
        let read = |entry: &str| entry.trim().parse::<u32>().ok().filter(|p| (1..=100).contains(p));
        let bits = list.split(',').try_fold(0, |bits, entry| Some(bits | 1 << read(entry)?));
        bits.map(Self).ok_or_else(|| EnvError::Invalid {
            name: VARIABLE.into(),
            value: list.into(),
            reason: "it must be percentages from 1 to 100, such as 50,80,95,100, or `none`".into(),
        })
    }

    /// Those that `percent` of the budget has reached, ascending.
    pub fn reached(self, percent: f64) -> impl Iterator<Item = u32> {
        (1..=100_u32).filter(move |p| self.0 & (1 << p) != 0 && f64::from(*p) <= percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_reached_once_the_share_is_there() {
        let reached = |percent| Thresholds::default().reached(percent).collect::<Vec<_>>();
        assert_eq!(reached(49.99), Vec::<u32>::new());
        assert_eq!(reached(80.0), [50, 80]);
        assert_eq!(reached(250.0), [50, 80, 95, 100]);
    }

    #[test]
    fn the_list_is_read_or_refused() {
        let read = |list: &str| Thresholds::from_env(&[(VARIABLE, list)].into_iter().collect());
        assert_eq!(read("10, 90").unwrap().reached(100.0).collect::<Vec<_>>(), [10, 90]);
        assert_eq!(read("none").unwrap().reached(100.0).count(), 0);
        for bad in ["0", "101", "50,", "half"] {
            assert!(read(bad).unwrap_err().to_string().starts_with("BUDGET_ALERTS is set to"), "{bad}");
        }
    }
}
