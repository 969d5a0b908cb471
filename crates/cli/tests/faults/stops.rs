//! Rows 7, 26 and 27: trainers that are killed, diverge, or are asked to leave while they store a checkpoint.

use crate::{
    harness::{signal, wait},
    world::{Dice, World, seeds},
};
use std::time::Duration;
use testkit::fault::{Fault, Rule};
use wire::{
    EventKind, JobState,
    event::{StreamBody, metric},
    job::FailureCode,
};

fn checkpoints(told: &[(u32, EventKind)], of: u32) -> Vec<u64> {
    let step = |(attempt, kind): &(u32, EventKind)| match kind {
        EventKind::Checkpoint { step, .. } if *attempt == of => Some(*step),
        _ => None,
    };
    told.iter().filter_map(step).collect()
}

/// Step that `attempt` says it goes on from, and the first one it trained.
fn beginning(told: &[(u32, EventKind)], of: u32) -> (Option<u64>, u64) {
    let mut resumed = None;
    for (_, kind) in told.iter().filter(|(attempt, _)| *attempt == of) {
        match kind {
            EventKind::Started { resumed_from_step, .. } => resumed = *resumed_from_step,
            EventKind::Metrics { step, values, .. } if values.contains_key(metric::TRAIN_LOSS) => {
                return (resumed, *step);
            }
            _ => {}
        }
    }
    panic!("attempt {of} trained nothing: {told:#?}");
}

#[test]
fn row_7_a_killed_trainer_is_replaced_and_says_where_it_goes_on() {
    let world = World::start(&[]);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let id = world.job("max_steps: 300, save_steps: 20");
        wait("a checkpoint", || !checkpoints(&world.told(&id), 1).is_empty());
        std::thread::sleep(Duration::from_millis(dice.next(0..300)));
        signal(world.hone.trainer_pid(), "KILL");
        let view = world.hone.wait_for_end(&id);
        assert_eq!(view["attempt"], 2, "{view:#}");
        let told = world.told(&id);
        let (resumed, first) = beginning(&told, 2);
        assert_eq!(
            resumed,
            checkpoints(&told, 1).into_iter().max(),
            "seed {seed}: it goes on from the newest checkpoint"
        );
        assert_eq!(Some(first), resumed.map(|step| step + 1), "seed {seed}");
        world.assert_whole(&id, 300);
    }
}

#[test]
fn row_26_a_loss_that_is_not_finite_ends_the_job_at_its_step() {
    let world = World::start(&[]);
    for seed in seeds() {
        // 1e9 only saturates the model: its norms keep the loss finite.
        let rate = Dice::new(seed).next(25..36);
        let training = "max_steps: 300, save_steps: 1, warmup_ratio: 0.5, max_grad_norm: 0.0";
        let id = world.job(&format!("{training}, learning_rate: 1.0e{rate}"));
        let view = world.assert_fails(&id, "DIVERGED", &[" at step ", "Lower learning_rate"]);
        assert_eq!(view["attempt"], 1, "it is not tried again: {view:#}");
        // What is kept is finite: it can be trained on.
        let message = view["failure"]["message"].as_str().unwrap();
        match checkpoints(&world.told(&id), 1).into_iter().max() {
            Some(step) => assert!(message.contains(&format!("the checkpoint of step {step} is kept")), "{message}"),
            None => assert!(message.contains("there is no earlier checkpoint"), "{message}"),
        }
    }
}

#[test]
fn row_27_a_trainer_that_is_preempted_while_it_stores_a_checkpoint_leaves_no_half_of_it() {
    let world = World::behind_proxy(&[]);
    world.trainer("export STOP_GRACE_MS=2500");
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let id = world.job("max_steps: 1200, save_steps: 40");
        wait("a checkpoint", || !checkpoints(&world.told(&id), 1).is_empty());
        // The files before it are stored, this one is taken and never answered.
        let stuck = ["optimizer.safetensors", "state.json", "manifest.json"][usize::try_from(dice.next(0..3)).unwrap()];
        let before = world.proxy().injected("hang");
        world.proxy().rules([Rule::new(Fault::Hang).on(stuck)]);
        wait("an upload that hangs", || world.proxy().injected("hang") > before);
        let trainer = world.hone.trainer_pid();
        signal(trainer, "TERM");
        std::thread::sleep(Duration::from_millis(3000));
        signal(trainer, "KILL");
        world.proxy().rules([]);
        let view = world.hone.wait_for_end(&id);
        assert_eq!(view["attempt"], 2, "{view:#}");
        let preempted = world.events(&id).into_iter().any(|message| {
            matches!(message.body, StreamBody::State { state: JobState::RetryWait, failure: Some(failure), .. }
                if failure.code == FailureCode::Preempted)
        });
        assert!(preempted, "seed {seed}: nothing says that it was preempted\n{}", world.hone.logs());
        let told = world.told(&id);
        let (resumed, first) = beginning(&told, 2);
        assert_eq!(resumed, checkpoints(&told, 1).into_iter().max(), "seed {seed}: only whole checkpoints count");
        assert_eq!(Some(first), resumed.map(|step| step + 1), "seed {seed}");
        world.assert_whole(&id, 1200);
    }
}
