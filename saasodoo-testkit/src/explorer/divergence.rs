//! An assertion for tests with two platforms.

use std::time::Duration;

use saasodoo_core::dual::{Comparator, compare_fleets};
use saasodoo_core::{InstanceFilter, InstanceOrchestrator};

/// Fails when two orchestrators show different instances, or one instance in two ways, at the end of the settle window.
/// What differs then and has not differed in the same way all along is named as still changing: the window is too short
/// for it.
///
/// ```
/// use std::time::Duration;
/// use saasodoo_core::{CreateOptions, InstanceOrchestrator};
/// use saasodoo_core::dual::Comparator;
/// use saasodoo_testkit::{MemoryOrchestrator, fixtures};
/// use saasodoo_testkit::explorer::assert_no_divergence;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> saasodoo_core::Result<()> {
/// let (old, new) = (MemoryOrchestrator::new(), MemoryOrchestrator::new());
/// let spec = fixtures::spec("acme");
/// old.create(&spec, CreateOptions::new()).await?;
/// new.create(&spec, CreateOptions::new()).await?;
/// assert_no_divergence(&old, &new, &Comparator::across_platforms(), Duration::from_secs(30)).await;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// Then, and when one of them cannot be listed.
pub async fn assert_no_divergence(
    primary: &dyn InstanceOrchestrator,
    secondary: &dyn InstanceOrchestrator,
    comparator: &Comparator,
    settle: Duration,
) {
    let compared = compare_fleets(primary, secondary, InstanceFilter::all(), comparator, settle, 3).await;
    let compared = compared.unwrap_or_else(|error| panic!("the two sides cannot be compared: {error}"));
    let lasting = compared.divergences().map(|found| (found, ""));
    let changing = compared.unsettled().map(|found| (found, " (still changing)"));
    let lines: Vec<String> = lasting
        .chain(changing)
        .map(|((id, field), note)| {
            let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
            format!(
                "{id}: {}: {} and {}{note}",
                field.field,
                show(&field.primary),
                show(&field.secondary)
            )
        })
        .collect();
    assert!(
        lines.is_empty(),
        "{primary} and {secondary} differ:\n{}",
        lines.join("\n")
    );
}
