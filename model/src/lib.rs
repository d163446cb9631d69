//! What is learned: quantile forecasts of load series, their calibration and their joint behaviour.
//!
//! A [`Forecaster`] turns contexts (values up to an origin, never beyond it) into quantiles: what was trained
//! ([`Trained`], usually inside a loaded [`Version`]; [`ModelKind`] says whether networks, linear maps or Prophet's trend and
//! seasons), and the rivals without training [`LastValue`], [`SeasonalNaive`] and [`SeasonalMean`], of which the first two
//! are also what a series falls back to when its history does not carry the trained one.
//!
//! Scenarios come from rank templates ([`RankTemplates`]): where the truth fell in past forecasts, at the same moments
//! for all series, pushed through today's quantiles.

mod calendar;
mod event_effects;
mod features;
mod forecaster;
mod fused;
mod gaps;
mod lanes;
mod learned;
mod local_time;
mod network;
mod pretrained;
mod rivals;
mod scenarios;
mod statistics;
mod templates;
mod templates_file;
mod trained;
mod version;
mod widths;

pub use event_effects::{EventEffects, EventSource, Occurrence};
pub use features::{CALENDAR, FeatureTable, Features, PATCHES, SPREADS, STEP_INPUTS};
pub use forecaster::{Answer, Context, ForecastSpec, Forecaster, SpecError};
pub use fused::{
    DecoderShape, FusedError, Instructions, LstmInference, LstmShape, LstmTraining, LstmWorkspace, SIMD_VARIABLE,
};
pub use gaps::Filled;
pub use lanes::{Lanes, LanesError};
pub use learned::{
    Blend, Learned, ModelKind, Prophet, ProphetSeries, ProphetShape, RIDGE_INPUTS, Ridge, SeriesFit,
    waves_at as prophet_waves,
};
pub use local_time::LocalTime;
pub use network::{
    Architecture, Batch, DropoutMasks, Goals, Kernel, NetworkError, Outputs, Parameter, TENSOR_LEVELS, WeightTensors,
    Weights, WeightsError, forward, pinball_loss, read_weights, weights_bytes,
};
pub use pretrained::{PRETRAINED, pretrained};
pub use rivals::{LastValue, SeasonalMean, SeasonalNaive, fall_back};
pub use scenarios::{FEWEST_MOMENTS, GroupMember, any_step, any_step_corrected, past_risk, scenarios_from};
pub use templates::{RankTemplates, TemplateLimits, TemplateSource, TemplatesError, rank_of};
pub use trained::{MIN_HISTORY_DAYS, Origin, Trained, TrainedParts, averaged};
pub use version::{
    Calibrations, JudgedSpan, Manifest, ProductManifest, SCHEMA, Version, VersionError, VersionParts, VersionProduct,
    without_model, write_version,
};
pub use widths::{BLOCKS as WIDTH_BLOCKS, WidthFactors, WidthSample, block as width_block};
