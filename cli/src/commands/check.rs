//! `foreshard check`: the independent checker on a saved plan.

use foreshard_policy::{Plan, PlanningInput, check};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

use crate::args::CheckArgs;
use crate::output::{self, Failure, Format, Verdict};

#[derive(Debug, thiserror::Error)]
#[error("could not read {what} from {path}")]
struct ReadJson {
    what: &'static str,
    path: String,
    #[source]
    source: Failure,
}

fn read<T: DeserializeOwned>(what: &'static str, path: &Path) -> Result<T, ReadJson> {
    let parsed = std::fs::read(path).map_err(Failure::from);
    let parsed = parsed.and_then(|bytes| serde_json::from_slice(&bytes).map_err(Failure::from));
    parsed.map_err(|source| ReadJson { what, path: path.display().to_string(), source })
}

#[derive(Serialize)]
struct Checked {
    plan: String,
    accepted: bool,
    moves: usize,
    violations: Vec<String>,
}

/// Accepts or refuses; a refusal is a "no".
pub fn run(args: &CheckArgs, format: Format) -> Result<Verdict, Failure> {
    let input: PlanningInput = read("a planning input", &args.input)?;
    let plan: Plan = read("a plan", &args.plan)?;
    let violations = match check(&input, &plan) {
        Ok(_) => Vec::new(),
        Err(found) => found.iter().map(ToString::to_string).collect(),
    };
    let accepted = violations.is_empty();
    let checked = Checked { plan: plan.id.to_string(), accepted, moves: plan.moves.len(), violations };
    output::print(format, &checked, |c| {
        let mut text =
            format!("plan {} with {} moves: {}", c.plan, c.moves, if accepted { "accepted" } else { "refused" });
        for violation in &c.violations {
            text.push_str(&format!("\n  - {violation}"));
        }
        text
    })?;
    Ok(if accepted { Verdict::Done } else { Verdict::No })
}
