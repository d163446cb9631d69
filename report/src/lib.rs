//! Reports of evaluations as one HTML file each: tables and plots inline, nothing loaded from elsewhere, no scripts.
//!
//! Plain data in ([`ReportData`], which is what `report.json` of a version folder holds), text out. A report can be
//! mailed, archived beside the version that it describes, and printed.

mod blocks;
mod fan;
mod page;
mod plot;
mod reliability;
mod table;
mod text;

pub use foreshard_domain::EvaluationReport as ReportData;

/// Renders the report of an evaluation as a self-contained HTML page.
pub fn evaluation_html(data: &ReportData) -> String {
    page::render(data)
}
