//! `foreshard simulate`: replays a history under policies and counts overload minutes.
//!
//! The first half of the history is for training and tuning, the second is replayed. Settings are chosen on the last third
//! of the first half, for `predictive` with a model that was trained before it.

use foreshard_datasets::{History, ReadFilter, read_history};
use foreshard_domain::{Metric, Product, Resource, ShardId, Step};
use foreshard_policy::PolicySettings;
use foreshard_policy::simulate::{
    Cell, ScenarioSource, SimLoads, SimPolicy, SimReport, SimSpec, SourceError, TuneGrid, Tuned, base_settings,
    simulate, tune_predictive, tune_reactive,
};
use serde::Serialize;
use std::path::Path;

use crate::args::{PolicyKind, SimulateArgs};
use crate::commands::foresight::{Foresight, Learned};
use crate::commands::progress::Progress;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Limits that are tried for `predictive`: fewer than for `reactive`, since each try forecasts the whole stretch.
const PREDICTIVE_TRIGGERS: [f64; 3] = [0.85, 0.95, 1.0];

#[derive(Serialize)]
struct Simulated {
    history: String,
    shards: usize,
    capacity_per_node: Vec<(Resource, f64)>,
    settings: Vec<Chosen>,
    policies: Vec<SimReport>,
}

/// What was chosen for a policy before the replay.
#[derive(Serialize)]
struct Chosen {
    policy: &'static str,
    limit: f64,
    min_gain: f64,
    tuning_minutes: f64,
    tuning_moves: usize,
}

impl Chosen {
    fn of(policy: &'static str, tuned: &Tuned) -> Self {
        let (minutes, moves) = (tuned.chosen.overload_minutes, tuned.chosen.moves);
        Self {
            policy,
            limit: tuned.chosen.trigger,
            min_gain: tuned.chosen.min_gain,
            tuning_minutes: minutes,
            tuning_moves: moves,
        }
    }
}

/// Replays and prints the policies side by side.
pub fn run(args: &SimulateArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let history = read_history(&args.history, &ReadFilter::default())?;
    let (loads, sizes) = loads(&history, &args.history)?;
    let spec = SimSpec {
        nodes: args.nodes,
        seed: args.seed,
        capacity_multiplier: args.capacity_multiplier,
        phases: args.phases,
        data_gib: args.data_gib,
        ..SimSpec::default()
    };
    let cell = Cell::new(&loads, sizes.as_deref(), &spec)?;
    let mut progress = Progress::new();
    progress.set("choosing settings of reactive", 0.0, "");
    let reactive = tune_reactive(std::slice::from_ref(&cell), &base_settings(), &TuneGrid::default())?;
    let mut chosen = vec![Chosen::of("reactive", &reactive)];
    let mut policies = Vec::new();
    for kind in &args.policies {
        let report = match kind {
            PolicyKind::None => replay(&cell, SimPolicy::None, &reactive.settings, &reactive)?,
            PolicyKind::Reactive => replay(&cell, SimPolicy::Reactive, &reactive.settings, &reactive)?,
            PolicyKind::Seasonal => replay(&cell, SimPolicy::Seasonal, &reactive.settings, &reactive)?,
            PolicyKind::Predictive => predictive(args, settings, &cell, &reactive, &mut chosen, &mut progress)?,
        };
        progress.set("replaying", policies.len() as f64 / args.policies.len() as f64, &report.policy);
        policies.push(report);
    }
    drop(progress);
    let capacity = cell.capacity();
    let capacity_per_node = Resource::ALL.into_iter().filter_map(|r| capacity[r].map(|c| (r, c))).collect();
    let name = args.history.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let done =
        Simulated { history: name, shards: cell.loads().shards().len(), capacity_per_node, settings: chosen, policies };
    output::print(format, &done, text)?;
    Ok(Verdict::Done)
}

fn replay(
    cell: &Cell,
    policy: SimPolicy<'_>,
    settings: &PolicySettings,
    reactive: &Tuned,
) -> Result<SimReport, Failure> {
    Ok(simulate(cell, policy, &reactive.settings, settings)?)
}

fn predictive(
    args: &SimulateArgs,
    settings: &Settings,
    cell: &Cell,
    reactive: &Tuned,
    chosen: &mut Vec<Chosen>,
    progress: &mut Progress,
) -> Result<SimReport, Failure> {
    let steps = args.steps.unwrap_or(settings.train.steps);
    let early = Learned::from(cell, cell.tuning().start, args.seed, steps, settings.train.threads, progress)?;
    progress.set("choosing settings of predictive", 0.0, "");
    let gain = reactive.chosen.min_gain;
    let grid = TuneGrid { triggers: PREDICTIVE_TRIGGERS.to_vec(), min_gains: vec![gain * 0.5, gain, gain * 2.0] };
    let mut source = |_: &Cell| -> Result<Box<dyn ScenarioSource>, SourceError> { Ok(Box::new(Foresight::of(&early))) };
    let tuned = tune_predictive(std::slice::from_ref(cell), reactive, &grid, &mut source)?;
    chosen.push(Chosen::of("predictive", &tuned));
    let late = Learned::from(cell, cell.half(), args.seed, steps, settings.train.threads, progress)?;
    progress.set("replaying predictive", 0.0, "");
    replay(cell, SimPolicy::Predictive(&mut Foresight::of(&late)), &tuned.settings, reactive)
}

/// All loads of a history on five-minute steps from the first to the last moment that every shard has, and the last known
/// sizes where all are known.
fn loads(history: &History, path: &Path) -> Result<(SimLoads, Option<Vec<f64>>), Failure> {
    let step = Product::NextHours.step();
    let native = history.native_step().unwrap_or(Step::MINUTE);
    if native > step {
        return Err(format!(
            "{} has a row every {} min; a simulation needs 5 min or finer",
            path.display(),
            native.as_minutes()
        )
        .into());
    }
    let shards: Vec<ShardId> = history.shards().filter(|s| s.residual_node().is_none()).cloned().collect();
    let mut resources = Vec::new();
    let mut lanes = Vec::new();
    for resource in Resource::ALL {
        let metric: Metric = resource.metric();
        let grids: Vec<_> = shards.iter().map(|s| history.grid(s, metric, step)).collect();
        if grids.iter().any(Option::is_some) {
            resources.push(resource);
            lanes.push(grids);
        }
    }
    let present = || lanes.iter().flatten().flatten();
    let start = present().map(|g| g.start).max().ok_or_else(|| format!("{} has no load to replay", path.display()))?;
    let end = present().map(|g| g.end()).min().unwrap_or(start);
    let steps = usize::try_from(step.count_in(end.since_ms(start))).unwrap_or(0);
    let mut values = Vec::with_capacity(resources.len() * shards.len() * steps);
    for grid in lanes.iter().flatten() {
        let from = grid.as_ref().and_then(|g| g.index_of(start));
        let lane = grid.as_ref().zip(from).and_then(|(g, from)| g.values.get(from..from + steps));
        match lane {
            // A measured zero-point may dip below zero by rounding; a load does not.
            Some(lane) => values.extend(lane.iter().map(|v| if *v < 0.0 { 0.0 } else { *v })),
            None => values.extend(std::iter::repeat_n(f32::NAN, steps)),
        }
    }
    let sizes = shards.iter().map(|s| history.last_data_bytes(s)).collect();
    Ok((SimLoads::new(start, step, resources, shards, steps, values)?, sizes))
}

fn text(done: &Simulated) -> String {
    let capacity: Vec<String> = done.capacity_per_node.iter().map(|(r, c)| format!("{r} {c:.0}")).collect();
    let mut text = format!("{}: {} shards, capacity of a node: {}\n", done.history, done.shards, capacity.join(", "));
    for c in &done.settings {
        text.push_str(&format!(
            "{}: limit {:.2}, least gain {:.2} (on the tuning stretch: {:.0} overload minutes, {} moves)\n",
            c.policy, c.limit, c.min_gain, c.tuning_minutes, c.tuning_moves
        ));
    }
    let row = |p: &SimReport| {
        vec![
            p.policy.clone(),
            format!("{:.0}", p.overload_minutes),
            format!("{:.1}", p.overload_area),
            format!("{:.0}", p.unavoidable_minutes),
            p.moves.to_string(),
            format!("{:.0}", p.bytes_moved / 1_073_741_824.0),
        ]
    };
    let rows: Vec<_> = done.policies.iter().map(row).collect();
    let header = ["policy", "overload min", "area", "unavoidable", "moves", "GiB moved"];
    format!("{text}\n{}", output::table(&header, &rows))
}
