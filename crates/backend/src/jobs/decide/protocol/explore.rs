//! Every step anybody can take in a [`World`], what must hold in all of them, and the exploration.

use super::*;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use std::hash::{DefaultHasher, Hash, Hasher};

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let job = Job { state: JobState::Queued, attempt: 0, epoch: 0, lease: Lease::None };
        vec![World {
            job,
            rows: vec![],
            instances: vec![],
            backends: [Backend::default(), Backend::default()],
            ended: None,
            broke: None,
            crashes: self.crashes,
            expiries: self.expiries,
            doubles: self.doubles,
            cancelled: !self.cancels,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (b, backend) in world.backends.iter().enumerate() {
            steps.push(Step::Look(b));
            if backend.plan.as_ref().is_some_and(|plan| !plan.actions.is_empty()) {
                steps.push(Step::Act(b));
            }
            if backend.uncommitted.is_some() {
                steps.extend([Step::Commit(b), Step::Forget(b)]);
            } else if b == 0 || self.bug == Bug::AcknowledgesBeforeCommit {
                // Without that bug it does not matter who handles a callback.
                let said = (0_u8..)
                    .zip(&world.instances)
                    .flat_map(|(i, instance)| (1..=instance.said).map(move |seq| Request { instance: i, seq }));
                steps.extend(said.map(|request| Step::Handle(b, request)));
            }
        }
        for (i, instance) in (0_u8..).zip(&world.instances).filter(|(_, instance)| instance.alive) {
            if instance.said < LAST {
                steps.push(Step::Say(i));
            }
            if instance.replied > instance.acked {
                steps.push(Step::HearReply(i));
            }
            if instance.refused {
                steps.push(Step::HearRefusal(i));
            }
            if instance.acked == LAST {
                steps.push(Step::Exit(i));
            }
            if world.crashes > 0 {
                steps.push(Step::Crash(i));
            }
        }
        if world.expiries > 0 && world.job.lease == Lease::Valid {
            steps.push(Step::Expire);
        }
        if world.doubles > 0 && world.instances.len() == 1 && world.instances[0].alive {
            steps.push(Step::Double);
        }
        if !world.cancelled && !world.job.state.is_terminal() {
            steps.push(Step::Cancel);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Look(b) => world.look(b, self.bug),
            Step::Act(b) => world.act(b, self.bug),
            Step::Handle(b, request) if self.bug == Bug::AcknowledgesBeforeCommit => {
                // What it will answer is known; whether it will be stored is not.
                let reply = world.clone().receive(request, self.bug);
                world.backends[b].uncommitted = Some(request);
                world.reply(request.instance, reply);
            }
            Step::Handle(_, request) => {
                let reply = world.receive(request, self.bug);
                world.reply(request.instance, reply);
            }
            Step::Commit(b) => {
                let request = world.backends[b].uncommitted.take()?;
                world.receive(request, self.bug);
            }
            Step::Forget(b) => world.backends[b].uncommitted = None,
            Step::Say(i) => world.instances[usize::from(i)].said += 1,
            Step::Exit(i) => {
                let instance = &mut world.instances[usize::from(i)];
                (instance.alive, instance.clean) = (false, true);
            }
            Step::Crash(i) => {
                world.crashes -= 1;
                world.instances[usize::from(i)].alive = false;
            }
            Step::HearReply(i) => {
                let instance = &mut world.instances[usize::from(i)];
                instance.acked = instance.replied;
            }
            Step::HearRefusal(i) => world.instances[usize::from(i)].alive = false,
            Step::Expire => {
                world.expiries -= 1;
                world.job.lease = Lease::Over;
            }
            Step::Double => {
                world.doubles -= 1;
                let Instance { attempt, epoch, .. } = world.instances[0];
                world.instances.push(Instance::new(attempt, epoch));
            }
            Step::Cancel => {
                world.cancelled = true;
                let direct = !has_runtime(world.job.state);
                world.become_(if direct { JobState::Cancelled } else { JobState::Cancelling }, self.bug);
            }
        }
        // Backends are alike, but for the one with its own clock.
        if self.bug != Bug::OwnClock && place(&world.backends[0]) > place(&world.backends[1]) {
            world.backends.swap(0, 1);
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a terminal state never changes", |_, w: &World| {
                w.ended.is_none_or(|end| end == w.job.state)
            }),
            Property::always("what is acknowledged is stored", |_, w: &World| {
                w.instances.iter().all(|i| i.acked <= w.rows[usize::from(i.attempt) - 1].last_seq)
            }),
            Property::always("an event is applied once, in order, without gaps", |_, w: &World| {
                w.rows
                    .iter()
                    .all(|row| (1..).zip(row.applied).all(|(seq, count)| count == u8::from(seq <= row.last_seq)))
            }),
            Property::always("one instance reports for an attempt", |_, w: &World| {
                w.rows.iter().all(|row| row.from.len() <= 1)
            }),
            Property::always("no step broke a rule", |_, w: &World| w.broke.is_none()),
            Property::always("at most one attempt has a runtime", |_, w: &World| {
                let attempts: BTreeSet<u8> = w.instances.iter().filter(|i| i.alive).map(|i| i.attempt).collect();
                attempts.len() <= 1
            }),
            Property::always("cancelled, failed and waiting jobs have no runtime", |_, w: &World| {
                let now = w.job.state;
                has_runtime(now) || now == JobState::Succeeded || w.instances.iter().all(|i| !i.alive)
            }),
            Property::always("success means that all was said and verified", |_, w: &World| {
                let last = w.rows.last().is_some_and(|row| row.last_seq == LAST);
                w.job.state != JobState::Succeeded || last
            }),
            Property::always("attempts do not exceed the maximum", |_, w: &World| w.job.attempt <= MAX_ATTEMPTS),
            Property::always("a job that runs has a lease", |_, w: &World| {
                let runs = matches!(w.job.state, JobState::Starting | JobState::Running);
                !runs || w.job.lease != Lease::None
            }),
            Property::sometimes("succeeds", |_, w: &World| w.job.state == JobState::Succeeded),
            Property::sometimes("succeeds at the second attempt", |_, w: &World| {
                w.job.state == JobState::Succeeded && w.job.attempt == 2
            }),
            Property::sometimes("fails", |_, w: &World| w.job.state == JobState::Failed),
            Property::sometimes("is cancelled while it runs", |_, w: &World| {
                w.job.state == JobState::Cancelled && !w.instances.is_empty()
            }),
        ]
    }
}

/// Any order will do.
fn place(backend: &Backend) -> u64 {
    let mut hasher = DefaultHasher::new();
    backend.hash(&mut hasher);
    hasher.finish()
}

/// What the explored states broke, and what was seen to happen.
#[derive(Debug, Default)]
struct Found {
    broken: BTreeSet<&'static str>,
    seen: BTreeSet<&'static str>,
}

fn explore(protocol: Protocol, found: &mut Found) {
    let what = format!("{protocol:?}");
    let planted = protocol.bug != Bug::None;
    let checker = protocol.checker().threads(2);
    let checker = if planted { checker.finish_when(HasDiscoveries::AnyFailures) } else { checker };
    let checker = checker.spawn_bfs().join();
    assert!(planted || checker.is_done(), "{what}");
    eprintln!("{what}: {} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    let discoveries = checker.discoveries();
    for property in checker.model().properties() {
        let Some(path) = discoveries.get(property.name) else { continue };
        if property.expectation == Expectation::Sometimes {
            found.seen.insert(property.name);
        } else {
            eprintln!("{}:\n{path}", property.name);
            found.broken.insert(property.name);
        }
    }
}

/// Everything at once is a matter of minutes; `HONE_WHOLE_MODEL` asks for it, and `make test-faults` does.
#[test]
fn every_reachable_state_respects_the_invariants() {
    let part = |crashes, expiries, doubles, cancels| Protocol { bug: Bug::None, crashes, expiries, doubles, cancels };
    let parts = match std::env::var_os("HONE_WHOLE_MODEL") {
        Some(_) => vec![part(1, 1, 1, true)],
        None => vec![part(1, 1, 0, false), part(1, 0, 0, true), part(0, 1, 1, true), part(1, 0, 1, false)],
    };
    let mut found = Found::default();
    parts.into_iter().for_each(|protocol| explore(protocol, &mut found));
    assert_eq!(found.broken, BTreeSet::new());
    assert_eq!(found.seen.len(), 4, "the invariants would hold if nothing happened: {:?}", found.seen);
}

#[test]
fn every_planted_bug_is_found() {
    let expected = [
        (Bug::AcknowledgesBeforeCommit, "what is acknowledged is stored"),
        (Bug::NoFence, "no step broke a rule"),
        (Bug::NoCompareAndSet, "at most one attempt has a runtime"),
        (Bug::OwnClock, "no step broke a rule"),
    ];
    for (bug, invariant) in expected {
        let mut found = Found::default();
        explore(Protocol { bug, crashes: 1, expiries: 1, doubles: 0, cancels: true }, &mut found);
        assert!(found.broken.contains(invariant), "{bug:?}: {:?}", found.broken);
    }
}
