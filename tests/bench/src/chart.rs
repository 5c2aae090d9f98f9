//! The ratios as bars, in an SVG beside the tables.
//!
//! **Invariant:** it draws only its input, and every number in it is also in a table.

use anyhow::{Result, anyhow};
use plotters::{
    chart::ChartBuilder,
    coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue},
    drawing::{DrawingArea, IntoDrawingArea as _},
    element::{PathElement, Rectangle},
    style::{BLACK, Color as _, RGBColor, WHITE},
};
use plotters_svg::SVGBackend;

/// Bars of one measurement.
pub(crate) struct Bars {
    /// The title.
    pub(crate) title: String,
    /// The name and the ratio of each bar.
    pub(crate) bars: Vec<(String, f64)>,
}

const WIDTH: u32 = 900;
const BAR_HEIGHT: u32 = 22;
const MARGIN: u32 = 90;
const OURS: RGBColor = RGBColor(31, 119, 180);
const OTHERS: RGBColor = RGBColor(170, 170, 170);

/// The charts, one below the other.
pub(crate) fn svg(charts: &[Bars]) -> Result<String> {
    let heights: Vec<u32> = charts.iter().map(|chart| MARGIN + BAR_HEIGHT * rows(chart)).collect();
    let mut text = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut text, (WIDTH, heights.iter().sum())).into_drawing_area();
        rest.fill(&WHITE).map_err(failed)?;
        for (chart, height) in charts.iter().zip(heights) {
            let (area, below) = rest.split_vertically(height);
            draw(&area, chart)?;
            rest = below;
        }
        rest.present().map_err(failed)?;
    }
    Ok(text)
}

fn rows(chart: &Bars) -> u32 {
    u32::try_from(chart.bars.len()).unwrap_or(u32::MAX)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw the chart: {error}")
}

fn draw(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, chart: &Bars) -> Result<()> {
    let most = chart.bars.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max) * 1.05;
    let count = i32::try_from(chart.bars.len())?;
    let mut axes = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(300)
        .build_cartesian_2d(0.0..most, (0..count).into_segmented())
        .map_err(failed)?;
    let name = |value: &SegmentValue<i32>| match value {
        SegmentValue::CenterOf(index) => {
            // Drawn from the bottom. plotters also requests one more than exist.
            let position = usize::try_from(*index).ok().and_then(|index| chart.bars.len().checked_sub(index + 1));
            let bar = position.and_then(|position| chart.bars.get(position));
            bar.map(|(name, ratio)| format!("{name}: {ratio:.3}")).unwrap_or_default()
        }
        _ => String::new(),
    };
    axes.configure_mesh()
        .disable_y_mesh()
        .y_labels(chart.bars.len())
        .y_label_formatter(&name)
        .x_labels(8)
        .draw()
        .map_err(failed)?;
    let bars = chart.bars.iter().rev().zip(0..).map(|((name, ratio), index)| {
        let colour = if name.starts_with("steer") || name.starts_with("strict") { OURS } else { OTHERS };
        let mut bar = Rectangle::new(
            [(0.0, SegmentValue::Exact(index)), (*ratio, SegmentValue::Exact(index + 1))],
            colour.filled(),
        );
        bar.set_margin(3, 3, 0, 0);
        bar
    });
    axes.draw_series(bars).map_err(failed)?;
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(count))];
    axes.draw_series([PathElement::new(one, BLACK)]).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_named_with_its_number() {
        let bars = vec![("strict".to_owned(), 1.012), ("nftables".to_owned(), 1.5)];
        let drawn = svg(&[Bars { title: "ratios".to_owned(), bars }]).expect("it can be drawn");
        assert!(
            drawn.starts_with("<svg") && drawn.contains("strict: 1.012") && drawn.contains("nftables: 1.500"),
            "{drawn}"
        );
    }
}
