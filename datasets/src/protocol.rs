//! How a forecaster is judged: grid, horizon, rolling origins, event.

use std::path::{Path, PathBuf};
use std::time::Duration;

use foreshard_domain::{ForecastError, Metric, QuantileLevels, Step, UnknownName};
use serde::Deserialize;

/// Which metric of a shard is forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The first of `cpu_util`, `txn_rate`, `value` that the shard has.
    First,
    /// This one; shards without it are left out.
    Metric(Metric),
}

/// When a model is fitted during an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refit {
    /// Once, on data before the first window.
    Never,
}

/// What `p_any` is the probability of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// Any step of the window is over this quantile of the series' data before the first window.
    TrainQuantile(f64),
    /// No event is scored.
    None,
}

/// What values a forecast may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// Not negative.
    Load,
    /// Anything.
    None,
}

/// Before which moment the mean absolute difference to a season earlier is taken, by which errors are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleBasis {
    /// The first window: one scale for the series.
    FirstWindow,
    /// Each window: its own scale; windows weigh equally.
    EachWindow,
}

/// A protocol of rolling-origin evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    /// Its name in reports.
    pub name: String,
    /// Which metric of a shard is forecast.
    pub target: Target,
    /// Grid on which rows are put by mean.
    pub step: Step,
    /// Steps of a window.
    pub horizon: usize,
    /// Windows at the end of each series.
    pub windows: usize,
    /// Steps from one window to the next.
    pub stride: usize,
    /// Length of the season that naive forecasts repeat; a multiple of the step.
    pub season: Step,
    /// Levels that are scored.
    pub levels: QuantileLevels,
    /// When the model is fitted.
    pub refit: Refit,
    /// What `p_any` means.
    pub event: Event,
    /// What values a forecast may take.
    pub bounds: Bounds,
    /// What errors are scaled by.
    pub scale: ScaleBasis,
    /// Only so many series, in the order of their names.
    pub max_series: Option<usize>,
}

/// What is wrong with one key of a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProblem {
    /// The key.
    pub key: &'static str,
    /// What is wrong with it and what would be right.
    pub what: String,
}

/// Why there is no such protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Neither a built-in name nor a file.
    #[error("no protocol {name:?}; built in are 5T, 15T and ETT_1H, anything else is the path of a TOML file")]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The file cannot be read.
    #[error("cannot read protocol file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is no TOML, or has keys or types that a protocol does not have.
    #[error("protocol {name} cannot be parsed")]
    Toml {
        /// The protocol.
        name: String,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Values that cannot be; all of them.
    #[error("protocol {name}: {}", .problems.iter().map(|p| format!("{}: {}", p.key, p.what)).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The protocol.
        name: String,
        /// What is wrong.
        problems: Vec<KeyProblem>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    target: String,
    step: String,
    horizon: usize,
    windows: usize,
    stride: Option<usize>,
    #[serde(default = "one_day")]
    season: String,
    #[serde(default = "tenths")]
    levels: Vec<f64>,
    #[serde(default = "never")]
    refit: String,
    #[serde(default = "none")]
    event: String,
    #[serde(default = "load")]
    bounds: String,
    #[serde(default = "first_window")]
    scale: String,
    max_series: Option<usize>,
}

fn one_day() -> String {
    "1d".into()
}
fn tenths() -> Vec<f64> {
    (1..10).map(|i| f64::from(i) / 10.0).collect()
}
fn never() -> String {
    "never".into()
}
fn none() -> String {
    "none".into()
}
fn load() -> String {
    "load".into()
}
fn first_window() -> String {
    "first_window".into()
}

/// Series of the built-in protocols, so that slow rivals stay affordable.
const BUILTIN_SERIES: usize = 60;
/// Most steps of a window and windows of a series: beyond lies a slip of the pen, not a protocol.
const MOST: usize = 100_000;

impl Protocol {
    /// A shipped protocol: `5T` (next hours), `15T` (next day) or `ETT_1H` (a week by the hour, as published).
    pub fn builtin(name: &str) -> Option<Self> {
        let hour = Step::from_ms(12 * Step::FIVE_MINUTES.as_ms())?;
        let (step, horizon, windows, published) = match name {
            "5T" => (Step::FIVE_MINUTES, 48, 12, false),
            "15T" => (Step::QUARTER_HOUR, 96, 7, false),
            "ETT_1H" => (hour, 168, 20, true),
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            target: Target::First,
            step,
            horizon,
            windows,
            stride: horizon,
            season: Step::DAY,
            levels: QuantileLevels::new(tenths()).ok()?,
            refit: Refit::Never,
            event: if published { Event::None } else { Event::TrainQuantile(0.95) },
            bounds: if published { Bounds::None } else { Bounds::Load },
            scale: if published { ScaleBasis::EachWindow } else { ScaleBasis::FirstWindow },
            max_series: Some(BUILTIN_SERIES),
        })
    }

    /// Reads a protocol from TOML. Needed keys: `target`, `step`, `horizon`, `windows`; defaults of the others: `stride` =
    /// horizon, `season` "1d", `levels` .1 to .9, `refit` "never", `event` "none", `bounds` "load", `scale`
    /// "first_window" (or "each_window"), `max_series` none.
    ///
    /// # Errors
    /// [`ProtocolError::Toml`] or [`ProtocolError::Invalid`] with everything that is wrong.
    pub fn from_toml(text: &str, name: &str) -> Result<Self, ProtocolError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|source| ProtocolError::Toml { name: name.to_owned(), source: Box::new(source) })?;
        let mut problems = Vec::new();
        match raw.check(name, &mut problems) {
            Some(protocol) if problems.is_empty() => Ok(protocol),
            _ => Err(ProtocolError::Invalid { name: name.to_owned(), problems }),
        }
    }

    /// A built-in protocol by name, or one from a file, named after it.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn load(name_or_path: &str) -> Result<Self, ProtocolError> {
        if let Some(protocol) = Self::builtin(name_or_path) {
            return Ok(protocol);
        }
        let path = Path::new(name_or_path);
        if !path.exists() && path.extension().is_none() {
            return Err(ProtocolError::Unknown { name: name_or_path.to_owned() });
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| ProtocolError::Io { path: path.to_owned(), source })?;
        let name = path.file_stem().map_or_else(|| name_or_path.to_owned(), |s| s.to_string_lossy().into_owned());
        Self::from_toml(&text, &name)
    }

    /// Steps of a season, at least one.
    pub fn season_steps(&self) -> usize {
        usize::try_from(self.step.count_in(self.season.as_ms())).unwrap_or(1).max(1)
    }
}

impl Raw {
    fn check(self, name: &str, problems: &mut Vec<KeyProblem>) -> Option<Protocol> {
        let mut note = |key, what: String| problems.push(KeyProblem { key, what });
        let target = target(&self.target).map_err(|e| note("target", format!("{e}, or \"first\""))).ok();
        let step = duration(&self.step).map_err(|what| note("step", what)).ok();
        let season = duration(&self.season).map_err(|what| note("season", what)).ok();
        if let (Some(step), Some(season)) = (step, season)
            && season.as_ms() % step.as_ms() != 0
        {
            note("season", format!("{} is no multiple of the step {}", self.season, self.step));
        }
        for (key, n) in [("horizon", self.horizon), ("windows", self.windows), ("stride", self.stride.unwrap_or(1))] {
            if n == 0 || n > MOST {
                note(key, format!("must be 1 to {MOST}, not {n}"));
            }
        }
        if self.max_series == Some(0) {
            note("max_series", "must be at least 1; leave it out for all series".into());
        }
        let levels = QuantileLevels::new(self.levels).map_err(|e: ForecastError| note("levels", e.to_string())).ok();
        if levels.as_ref().is_some_and(|levels| levels.len() < 2) {
            note("levels", "must be two or more: one alone says nothing about uncertainty".into());
        }
        if self.refit != "never" {
            note("refit", format!("must be \"never\", not {:?}", self.refit));
        }
        let event = event(&self.event).map_err(|what| note("event", what)).ok();
        let bounds = one_of(&self.bounds, [("load", Bounds::Load), ("none", Bounds::None)]);
        let bounds = bounds.map_err(|what| note("bounds", what)).ok();
        let bases = [("first_window", ScaleBasis::FirstWindow), ("each_window", ScaleBasis::EachWindow)];
        let scale = one_of(&self.scale, bases).map_err(|what| note("scale", what)).ok();
        Some(Protocol {
            name: name.to_owned(),
            target: target?,
            step: step?,
            horizon: self.horizon,
            windows: self.windows,
            stride: self.stride.unwrap_or(self.horizon),
            season: season?,
            levels: levels?,
            refit: Refit::Never,
            event: event?,
            bounds: bounds?,
            scale: scale?,
            max_series: self.max_series,
        })
    }
}

fn target(text: &str) -> Result<Target, UnknownName> {
    if text == "first" { Ok(Target::First) } else { text.parse().map(Target::Metric) }
}

fn duration(text: &str) -> Result<Step, String> {
    let parsed: Duration =
        humantime::parse_duration(text).map_err(|e| format!("{text:?} is no duration ({e}); use 5m or 1d"))?;
    let ms = i64::try_from(parsed.as_millis()).ok();
    ms.and_then(Step::from_ms).ok_or_else(|| format!("{text:?} must be longer than zero"))
}

fn event(text: &str) -> Result<Event, String> {
    if text == "none" {
        return Ok(Event::None);
    }
    let level = text.strip_prefix("train_q").and_then(|level| level.parse::<f64>().ok());
    let level = level.filter(|level| *level > 0.0 && *level < 1.0);
    level.map(Event::TrainQuantile).ok_or_else(|| format!("must be \"none\" or like \"train_q0.95\", not {text:?}"))
}

fn one_of<T: Copy, const N: usize>(text: &str, known: [(&str, T); N]) -> Result<T, String> {
    let names = known.map(|(name, _)| format!("{name:?}")).join(" or ");
    let found = known.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("must be {names}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        target = "first"
        step = "5m"
        horizon = 48
        windows = 12
        stride = 48
        season = "1d"
        levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        refit = "never"
        event = "train_q0.95"
        bounds = "load"
        max_series = 60
    "#;

    #[test]
    fn file_of_the_next_hours_is_the_builtin() {
        assert_eq!(Protocol::from_toml(TEXT, "5T").unwrap(), Protocol::builtin("5T").unwrap());
        assert_eq!(Protocol::builtin("5T").unwrap().season_steps(), 288);
        assert_eq!(Protocol::builtin("15T").unwrap().season_steps(), 96);
        assert_eq!(Protocol::builtin("6T"), None);
    }

    #[test]
    fn tells_everything_that_is_wrong() {
        let text = "target = \"cpu\"\nstep = \"0s\"\nhorizon = 0\nwindows = 1\nevent = \"q2\"\nbounds = \"x\"";
        let Err(ProtocolError::Invalid { problems, .. }) = Protocol::from_toml(text, "x") else { panic!("accepted") };
        let keys: Vec<_> = problems.iter().map(|p| p.key).collect();
        assert_eq!(keys, ["target", "step", "horizon", "event", "bounds"]);
        let one_level = TEXT.replace("0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9", "0.5");
        assert!(matches!(Protocol::from_toml(&one_level, "x"), Err(ProtocolError::Invalid { .. })));
        assert!(matches!(Protocol::from_toml(&format!("{TEXT}\nstrid = 1"), "x"), Err(ProtocolError::Toml { .. })));
        assert!(matches!(Protocol::load("7T"), Err(ProtocolError::Unknown { .. })));
        assert!(matches!(Protocol::load("absent.toml"), Err(ProtocolError::Io { .. })));
    }
}
