//! Reports the results of a benchmark: prints a table row by row, and writes JSON and a chart at the end.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::fmt::Write;

/// The figures of one run, and whether a target was missed.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    charts: Vec<(String, Vec<(String, f64)>)>,
    missed: bool,
}

#[derive(serde::Serialize)]
struct Row {
    name: String,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
}

impl Report {
    /// Adds a figure without a target.
    pub fn figure(&mut self, name: &str, value: String) {
        println!("{name:<58} {value:>14}");
        self.rows.push(Row { name: name.to_owned(), value, bar: None, reached: None });
    }

    /// Adds a figure that must reach a target.
    pub fn reach(&mut self, name: &str, value: f64, reached: bool, bar: &str) {
        self.missed |= !reached;
        println!("{name:<58} {value:>14.2}   target {bar}{}", if reached { "" } else { "   MISSED" });
        self.rows.push(Row { name: name.to_owned(), value: format!("{value:.2}"), bar: Some(bar.to_owned()), reached: Some(reached) });
    }

    /// Adds a bar chart.
    pub fn chart(&mut self, title: &str, bars: Vec<(String, f64)>) {
        self.charts.push((title.to_owned(), bars));
    }

    /// Writes `NAME.json`, and `NAME.svg` where there are charts, into `REPORTS`. With `--check`, fails the run where a
    /// bar was missed.
    pub fn finish(self, name: &str) {
        if let Ok(folder) = std::env::var("REPORTS") {
            let json = serde_json::to_string_pretty(&self.rows).expect("plain figures");
            std::fs::write(format!("{folder}/{name}.json"), json + "\n").expect("the reports' folder can be written");
            if !self.charts.is_empty() {
                std::fs::write(format!("{folder}/{name}.svg"), svg(&self.charts)).expect("the reports' folder can be written");
            }
        }
        if self.missed && std::env::args().any(|argument| argument == "--check") {
            std::process::exit(1);
        }
    }
}

fn svg(charts: &[(String, Vec<(String, f64)>)]) -> String {
    let height: usize = charts.iter().map(|(_, bars)| 44 + bars.len() * 22).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"760\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let mut y = 0;
    for (title, bars) in charts {
        let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(svg, "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{title}</text>", y + 24);
        y += 34;
        for (at, (name, value)) in bars.iter().enumerate() {
            let (width, color) = (value / most * 380.0, if at % 2 == 0 { "#2563eb" } else { "#9ca3af" });
            let _ = writeln!(svg, "<text x=\"250\" y=\"{}\" text-anchor=\"end\">{name}</text>", y + 15);
            let _ = writeln!(svg, "<rect x=\"258\" y=\"{y}\" width=\"{width:.0}\" height=\"18\" fill=\"{color}\"/>");
            let _ = writeln!(svg, "<text x=\"{:.0}\" y=\"{}\">{value:.0}</text>", 264.0 + width, y + 15);
            y += 22;
        }
        y += 10;
    }
    svg + "</svg>\n"
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The smallest and the largest of them.
pub fn spread(values: &[f64], digits: usize) -> String {
    let (least, most) = (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
    format!("{least:.digits$} to {most:.digits$}")
}
