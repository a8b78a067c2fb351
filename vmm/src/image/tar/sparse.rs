//! Sparse maps.

/// A run of stored bytes of a sparse file; what lies between runs is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SparseRun {
    /// Where it starts in the file.
    pub(crate) offset: u64,
    /// Its length.
    pub(crate) length: u64,
}

/// Checks a map: in order, apart, inside the file, and together as long as what is stored.
/// Returns the map without its empty runs.
pub(super) fn checked(runs: Vec<SparseRun>, real_size: u64, stored: u64) -> Option<Vec<SparseRun>> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for run in &runs {
        if run.offset < end {
            return None;
        }
        end = run.offset.checked_add(run.length)?;
        total = total.checked_add(run.length)?;
    }
    (end <= real_size && total == stored)
        .then(|| runs.into_iter().filter(|run| run.length > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(offset: u64, length: u64) -> SparseRun {
        SparseRun { offset, length }
    }

    #[test]
    fn empty_runs_are_dropped() {
        assert_eq!(
            checked(vec![run(0, 4), run(10, 0)], 10, 4),
            Some(vec![run(0, 4)])
        );
    }

    #[test]
    fn overlapping_runs_are_refused() {
        assert_eq!(checked(vec![run(0, 4), run(3, 2)], 10, 6), None);
    }

    #[test]
    fn a_run_behind_the_end_is_refused() {
        assert_eq!(checked(vec![run(8, 4)], 10, 4), None);
        assert_eq!(checked(vec![run(u64::MAX, 4)], u64::MAX, 4), None);
    }

    #[test]
    fn stored_bytes_that_no_run_names_are_refused() {
        assert_eq!(checked(vec![run(0, 4)], 10, 5), None);
    }
}
