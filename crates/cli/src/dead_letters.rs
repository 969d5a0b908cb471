//! `hone jobs dead-letters`.

use crate::{
    api::Api,
    args::DeadLettersCommand,
    context::Context,
    error::CliResult,
    ui::{self, Ui},
};
use wire::dead_letter::{DeadLetter, ReplayDeadLetters};

pub async fn run(context: &Context, api: &Api, command: DeadLettersCommand) -> CliResult {
    match command {
        DeadLettersCommand::Ls { id } => {
            let job = api.find_job(&id).await?;
            let letters = api.dead_letters(job.id).await?;
            context.ui.show(&letters, |ui| match letters.as_slice() {
                [] => ui.line("no dead letters: every report was applied"),
                some => table(ui, some),
            });
        }
        DeadLettersCommand::Replay { id, letter } => {
            let job = api.find_job(&id).await?;
            let ids = (!letter.is_empty()).then_some(letter);
            let replayed = api.replay_dead_letters(job.id, &ReplayDeadLetters { ids }).await?;
            context.ui.show(&replayed, |ui| {
                ui.line(format!("{} applied, {} kept", replayed.applied.len(), replayed.kept.len()));
                if !replayed.kept.is_empty() {
                    table(ui, &replayed.kept);
                }
            });
        }
    }
    Ok(())
}

fn table(ui: Ui, letters: &[DeadLetter]) {
    let rows = letters.iter().map(|letter| {
        let seq = letter.seq.map(|seq| seq.to_string()).unwrap_or_default();
        vec![letter.id.to_string(), letter.attempt.to_string(), seq, ui::ago(letter.created_at), letter.reason.clone()]
    });
    ui.line(ui::table(&["number", "attempt", "seq", "sent", "reason"], &[0, 1, 2], rows));
}
