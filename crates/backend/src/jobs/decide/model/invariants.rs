//! What every history must respect, and the histories.

use super::*;

impl World {
    fn alive(&self) -> usize {
        self.attempts.iter().filter(|a| a.process.stands()).count()
    }

    fn check(&self, before: &Self) {
        let (was, is) = (before.job.state, self.job.state);
        assert!(!was.is_terminal() || was == is, "{was} became {is}");
        assert!(was == is || reachable(was, is), "{was} became {is}");
        assert!(self.job.attempt <= self.job.max_attempts, "attempt {} of {}", self.job.attempt, self.job.max_attempts);
        assert!(self.job.epoch >= before.job.epoch);
        assert!(self.alive() <= 1, "two attempts run");
        if !has_runtime(is) && is != JobState::Succeeded {
            assert_eq!(self.alive(), 0, "{is} with a runtime");
        }
        let earlier = self.attempts.iter().rev().skip(1);
        assert!(earlier.clone().all(|a| matches!(a.process, Process::Ended(_))), "an earlier attempt can still run");
        assert!(earlier.clone().all(|a| a.row.outcome.is_some()), "an attempt ended without outcome");
        for (old, new) in before.attempts.iter().zip(&self.attempts) {
            assert!(old.row.outcome.is_none() || old.row.outcome == new.row.outcome, "a second outcome");
        }
        match is {
            JobState::Starting | JobState::Running | JobState::Pausing => assert!(self.job.lease_expires_at.is_some()),
            JobState::RetryWait => assert!(self.job.retry_at.is_some()),
            JobState::Succeeded => assert!(self.attempts.last().is_some_and(|a| a.artifacts), "not verified"),
            _ => {}
        }
    }

    /// From here on backends work undisturbed, and trainers finish or say nothing at all: the job must come
    /// to rest either way.
    fn calm(&mut self, trainers: Trainers) {
        self.backends = [None, None];
        if trainers == Trainers::Silent {
            self.channel.retain(|m| m.stored);
        }
        for _ in 0..400 {
            let before = self.clone();
            if self.job.state.is_terminal() || self.job.state == JobState::Paused {
                return;
            }
            self.now += Duration::from_secs(20);
            // A cluster that stays full is no fault of ours.
            self.whim(&Whim::Admit);
            if trainers == Trainers::Diligent {
                self.finish_attempt();
            }
            self.check(&before);
            for _ in 0..10 {
                let before = self.clone();
                self.look(0);
                self.act(0);
                self.check(&before);
            }
        }
        panic!("stuck: {:#?}", self.job);
    }
}

impl World {
    fn finish_attempt(&mut self) {
        let Some(attempt) = self.attempts.last() else { return };
        if !matches!(attempt.process, Process::Alive { stop_since: None }) {
            return;
        }
        if attempt.row.outcome.is_none() {
            let last = match self.job.state {
                JobState::Pausing => Deed::Stop(StopReason::Paused),
                _ => Deed::Finish { good: true, stored: false },
            };
            self.deed(&last);
        }
        while let Some(message) = self.channel.pop() {
            self.receive(&message);
        }
        self.deed(&Deed::Exit(0));
    }
}

/// One step may hold a claim and what follows from the same batch.
fn reachable(from: JobState, to: JobState) -> bool {
    can(from, to) || (can(from, JobState::Running) && can(JobState::Running, to))
}

/// `PROPTEST_CASES` asks for more; `make test-faults` does.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_history_breaks_an_invariant_and_every_job_comes_to_rest(
        steps in steps(),
        max_attempts in 1_u32..=2,
        trainers in prop_oneof![Just(Trainers::Diligent), Just(Trainers::Silent)],
    ) {
        let mut world = World::new(max_attempts);
        for step in &steps {
            let before = world.clone();
            world.step(step);
            world.check(&before);
        }
        world.calm(trainers);
    }
}
