//! `foreshard simulate`: replays a history under policies and counts overload minutes.
//!
//! The first half of the history is for training and tuning, the second is replayed. Settings are chosen on the last third
//! of the first half, for `predictive` with a model that was trained before it, once for all seeds and all cells that
//! can count together.

use foreshard_datasets::{History, ReadFilter, read_history};
use foreshard_domain::{Metric, Product, Resource, ShardId, Step};
use foreshard_policy::PolicySettings;
use foreshard_policy::simulate::{
    Bars, COUNTABLE, Cell, RidgeModel, RidgePaths, RidgeSpec, ScenarioSource, Seen, SimLoads, SimPolicy, SimReport,
    SimSpec, SourceError, TuneGrid, Tuned, bars, base_settings, simulate, tune_predictive, tune_reactive,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use crate::args::{PolicyKind, SimForecaster, SimulateArgs};
use crate::commands::foresight::{Foresight, Learned};
use crate::commands::progress::Progress;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Limits that are tried for `predictive`.
const PREDICTIVE_TRIGGERS: [f64; 4] = [0.85, 0.9, 0.95, 1.0];

/// Least gains that are tried for it. They are no multiples of `reactive`'s: late minutes count less to one that looks ahead,
/// so its gains are smaller.
const PREDICTIVE_GAINS: [f64; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

#[derive(Serialize)]
struct Simulated {
    history: String,
    shards: usize,
    /// Of the first cell.
    capacity_per_node: Vec<(Resource, f64)>,
    settings: Vec<Chosen>,
    /// Every policy of every cell.
    policies: Vec<SimReport>,
    bars: Option<Bars>,
}

/// What was chosen for a policy before the replay.
#[derive(Serialize)]
struct Chosen {
    policy: &'static str,
    limit: f64,
    min_gain: f64,
    tuning_minutes: f64,
    tuning_moves: usize,
    /// Cells and seeds over which these are summed.
    tuning_cells: usize,
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
            tuning_cells: tuned.chosen.cells,
        }
    }
}

/// A forecaster that was fitted before a step.
#[derive(Clone)]
enum Fitted {
    Network(Rc<Learned>),
    Ridge(RidgePaths),
}

impl Fitted {
    fn source(&self) -> Box<dyn ScenarioSource> {
        match self {
            Fitted::Network(learned) => Box::new(Foresight::of(learned)),
            Fitted::Ridge(paths) => Box::new(paths.clone()),
        }
    }
}

/// What a run is made from.
struct Run<'a> {
    args: &'a SimulateArgs,
    settings: &'a Settings,
    cells: Vec<Cell>,
    progress: Progress,
}

impl Run<'_> {
    /// Forecasters by seed, fitted on what lies before `before`: loads depend on nothing else of a cell.
    fn fit(&mut self, before: fn(&Cell) -> usize) -> Result<BTreeMap<u64, Fitted>, Failure> {
        let mut fitted = BTreeMap::new();
        for cell in &self.cells {
            let seed = cell.spec().seed;
            if fitted.contains_key(&seed) {
                continue;
            }
            let made = match self.args.forecaster {
                SimForecaster::Ridge => {
                    let seen = Seen::new(cell.loads(), before(cell));
                    Fitted::Ridge(RidgePaths::new(&Arc::new(RidgeModel::fit(&seen, RidgeSpec::default())?)))
                }
                SimForecaster::Network => {
                    let steps = self.args.steps.unwrap_or(self.settings.train.steps);
                    let threads = self.settings.train.threads;
                    Fitted::Network(Learned::from(cell, before(cell), seed, steps, threads, &mut self.progress)?)
                }
            };
            fitted.insert(seed, made);
        }
        Ok(fitted)
    }

    fn tune_predictive(&mut self, cells: &[Cell], reactive: &Tuned) -> Result<Tuned, Failure> {
        let early = self.fit(|cell| cell.tuning().start)?;
        self.progress.set("choosing settings of predictive", 0.0, "");
        let grid = TuneGrid { triggers: PREDICTIVE_TRIGGERS.to_vec(), min_gains: PREDICTIVE_GAINS.to_vec() };
        let mut source = |cell: &Cell| -> Result<Box<dyn ScenarioSource>, SourceError> {
            let fitted = early.get(&cell.spec().seed).ok_or("no forecaster of this seed")?;
            Ok(fitted.source())
        };
        Ok(tune_predictive(cells, reactive, &grid, &mut source)?)
    }
}

/// Replays and prints the policies side by side.
pub fn run(args: &SimulateArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let history = read_history(&args.history, &ReadFilter::default())?;
    let (loads, sizes) = loads(&history, &args.history)?;
    let cells = cells(args, &loads, sizes.as_deref())?;
    let mut run = Run { args, settings, cells, progress: Progress::new() };
    run.progress.set("choosing settings of reactive", 0.0, "");
    let tuning = tuning_cells(&run.cells);
    let reactive = tune_reactive(&tuning, &base_settings(), &TuneGrid::default())?;
    let mut chosen = vec![Chosen::of("reactive", &reactive)];
    let mut predictive = None;
    if args.policies.contains(&PolicyKind::Predictive) {
        let tuned = run.tune_predictive(&tuning, &reactive)?;
        chosen.push(Chosen::of("predictive", &tuned));
        predictive = Some((tuned.settings, run.fit(Cell::half)?));
    }
    let mut policies = Vec::new();
    let all = run.cells.len() * args.policies.len();
    for cell in &run.cells {
        for kind in &args.policies {
            let report = replay(cell, *kind, &reactive.settings, predictive.as_ref())?;
            policies.push(report);
            run.progress.set("replaying", policies.len() as f64 / all as f64, "");
        }
    }
    let Run { cells, progress, .. } = run;
    drop(progress);
    let capacity = cells.first().map(Cell::capacity).unwrap_or_default();
    let capacity_per_node = Resource::ALL.into_iter().filter_map(|r| capacity[r].map(|c| (r, c))).collect();
    let name = args.history.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let shards = loads.shards().len();
    let judged = bars(&policies).filter(|_| cells.len() > 1);
    let done = Simulated { history: name, shards, capacity_per_node, settings: chosen, policies, bars: judged };
    output::print(format, &done, text)?;
    Ok(Verdict::Done)
}

/// The cells on which settings are chosen: those that can count, or all where none can.
fn tuning_cells(cells: &[Cell]) -> Vec<Cell> {
    let countable = |cell: &&Cell| COUNTABLE.contains(&cell.spec().capacity_multiplier);
    let some: Vec<Cell> = cells.iter().filter(countable).cloned().collect();
    if some.is_empty() { cells.to_vec() } else { some }
}

/// Every number of nodes with every multiplier and seed.
fn cells(args: &SimulateArgs, loads: &SimLoads, sizes: Option<&[f64]>) -> Result<Vec<Cell>, Failure> {
    let mut cells = Vec::new();
    for nodes in &args.nodes {
        for capacity_multiplier in &args.capacity_multiplier {
            for seed in &args.seed {
                let spec = SimSpec {
                    nodes: *nodes,
                    seed: *seed,
                    capacity_multiplier: *capacity_multiplier,
                    phases: args.phases,
                    data_gib: args.data_gib,
                    ..SimSpec::default()
                };
                cells.push(Cell::new(loads, sizes, &spec)?);
            }
        }
    }
    Ok(cells)
}

fn replay(
    cell: &Cell,
    kind: PolicyKind,
    reactive: &PolicySettings,
    predictive: Option<&(PolicySettings, BTreeMap<u64, Fitted>)>,
) -> Result<SimReport, Failure> {
    let ahead = predictive.map_or(reactive, |(settings, _)| settings);
    let policy = match kind {
        PolicyKind::None => SimPolicy::None,
        PolicyKind::Reactive => SimPolicy::Reactive,
        // Those that look ahead do so with the settings that were chosen for looking ahead, where there are any.
        PolicyKind::Seasonal => return Ok(simulate(cell, SimPolicy::Seasonal, reactive, ahead)?),
        PolicyKind::Oracle => return Ok(simulate(cell, SimPolicy::Oracle, reactive, ahead)?),
        PolicyKind::Static => SimPolicy::Static,
        PolicyKind::Predictive => {
            let (settings, fitted) = predictive.ok_or("predictive was not prepared")?;
            let mut source = fitted.get(&cell.spec().seed).ok_or("no forecaster of this seed")?.source();
            return Ok(simulate(cell, SimPolicy::Predictive(source.as_mut()), reactive, settings)?);
        }
    };
    Ok(simulate(cell, policy, reactive, reactive)?)
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
    let minutes = |m: Option<f64>| m.map_or("-".to_owned(), |m| format!("{m:.0}"));
    let row = |p: &SimReport| {
        vec![
            format!("{} x {:.2}, {}", p.nodes, p.capacity_multiplier, p.seed),
            p.policy.clone(),
            format!("{:.0}", p.overload_minutes),
            format!("{:.1}", p.overload_area),
            format!("{:.0}", p.unavoidable_minutes),
            p.moves.to_string(),
            format!("{:.0}", p.bytes_moved / 1_073_741_824.0),
            format!("{:.2} / {:.2}", p.balance.p50, p.balance.bound_p50),
            minutes(p.lead_time_minutes.p50),
            p.forecast_skill.map_or("-".to_owned(), |s| format!("{s:.2}")),
        ]
    };
    let rows: Vec<_> = done.policies.iter().map(row).collect();
    let header =
        ["cell", "policy", "overload min", "area", "unavoidable", "moves", "GiB moved", "balance", "lead min", "skill"];
    text.push('\n');
    text.push_str(&output::table(&header, &rows));
    if let Some(judged) = &done.bars {
        text.push_str(&bars_text(judged));
    }
    text
}

/// Which cells count, and the policies over these.
fn bars_text(judged: &Bars) -> String {
    let counted = judged.cells.iter().filter(|c| c.counted).count();
    let countable = judged.cells.iter().filter(|c| COUNTABLE.contains(&c.capacity_multiplier)).count();
    let mut text = format!(
        "\n{counted} of {countable} cells count (multiplier {} to {}, reactive over 60 min, best known at most half)\n",
        COUNTABLE.start(),
        COUNTABLE.end()
    );
    if !judged.informative {
        text.push_str(
            "too few (four and half of them are needed): these cells say nothing of what looking ahead brings\n",
        );
    }
    if judged.policies.is_empty() {
        return text;
    }
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.0} %", v * 100.0));
    let row = |p: &foreshard_policy::simulate::PolicyBars| {
        vec![
            p.policy.clone(),
            format!("{:.2}", p.minutes),
            format!("{:.2}", p.area),
            format!("{:.2}", p.median_minutes),
            format!("{} of {}", p.moves.0, p.moves.1),
            percent(p.gap_closed),
            p.regret_minutes.map_or("-".to_owned(), |r| format!("{r:.0}")),
        ]
    };
    let rows: Vec<_> = judged.policies.iter().map(row).collect();
    let header = [
        "policy",
        "minutes / reactive",
        "area / reactive",
        "median cell",
        "moves",
        "gap to oracle closed",
        "regret min",
    ];
    text.push_str(&output::table(&header, &rows));
    text
}
