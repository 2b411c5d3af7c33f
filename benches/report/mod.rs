//! How benchmarks print their figures, and the bars that these must reach.

/// A figure without a bar.
pub fn figure(name: &str, value: String) {
    println!("{name:<58} {value:>14}");
}

/// Whether a bar was missed.
#[derive(Default)]
pub struct Bars {
    missed: bool,
}

impl Bars {
    /// A figure that must be reached.
    pub fn reach(&mut self, name: &str, value: f64, reached: bool, bar: &str) {
        self.missed |= !reached;
        println!("{name:<58} {value:>14.2}   bar {bar}{}", if reached { "" } else { "   MISSED" });
    }

    /// With `--check`, fails the run where a bar was missed.
    pub fn finish(self) {
        if self.missed && std::env::args().any(|argument| argument == "--check") {
            std::process::exit(1);
        }
    }
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
