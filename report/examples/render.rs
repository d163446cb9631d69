//! Renders `report.json` of a version folder: `cargo run --example render -- report.json > report.html`.

use foreshard_report::{ReportData, evaluation_html};
use std::io::Write as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of a report.json")?;
    let data: ReportData = serde_json::from_slice(&std::fs::read(path)?)?;
    std::io::stdout().write_all(evaluation_html(&data).as_bytes())?;
    Ok(())
}
