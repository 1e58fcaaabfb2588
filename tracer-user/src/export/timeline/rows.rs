//! Rows of a track: what overlaps needs a row each.

/// Rows in use, each until some time.
#[derive(Debug)]
pub(super) struct Rows {
    ends: Vec<u64>,
    limit: usize,
}

impl Rows {
    /// `limit`: most rows.
    pub(super) fn new(limit: usize) -> Self {
        Self { ends: Vec::new(), limit }
    }

    /// The lowest row that is free from `start` on; it is taken until `end`. `None`: all are taken, and it is left out.
    pub(super) fn place(&mut self, start: u64, end: u64) -> Option<usize> {
        if let Some(row) = self.ends.iter().position(|&taken| taken <= start) {
            self.ends[row] = end;
            return Some(row);
        }
        if self.ends.len() >= self.limit {
            return None;
        }
        self.ends.push(end);
        Some(self.ends.len() - 1)
    }
}

/// Which row each of some spans goes to, so that on every row they nest as the tree does: a span lies below its parent, or on a row
/// of its own. Spans are `(start, end, place of the parent in the list)`, parents before their children; the result has `None` for what
/// found no row among `limit`.
pub(super) fn nest(spans: &[(u64, u64, Option<usize>)], limit: usize) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    // Longer ones first, so that what begins together nests; the list's order where they are equal: parents first.
    order.sort_by_key(|&place| (spans[place].0, std::cmp::Reverse(spans[place].1), place));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut placed = vec![None; spans.len()];
    for place in order {
        let (start, end, parent) = spans[place];
        let mut fits = |open: &mut Vec<usize>| {
            while open.last().is_some_and(|&top| spans[top].1 <= start && Some(top) != parent) {
                open.pop();
            }
            open.last().is_none_or(|&top| Some(top) == parent && end <= spans[top].1)
        };
        let row = rows.iter_mut().position(&mut fits);
        let row = row.or_else(|| (rows.len() < limit).then(|| rows.push(Vec::new())).map(|()| rows.len() - 1));
        if let Some(row) = row {
            rows[row].push(place);
            placed[place] = Some(row);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_row_is_taken() {
        let mut rows = Rows::new(3);
        let placed: Vec<_> =
            [(0, 10), (5, 20), (10, 12), (11, 30), (12, 13)].map(|(start, end)| rows.place(start, end)).into();
        // 0 ├──────┤ ├─┤├┤      0:0-10, 10-12, 12-13
        // 1     ├────────────   1:5-20
        // 2           ├──────   2:11-30
        assert_eq!(placed, [Some(0), Some(1), Some(0), Some(2), Some(0)]);
        assert_eq!(rows.place(12, 14), None, "all three are taken");
        assert_eq!(rows.place(13, 14), Some(0));
    }

    #[test]
    fn siblings_that_overlap_get_rows_and_their_children_follow_them() {
        let spans = [
            (0, 100, None),
            (10, 50, Some(0)),
            (20, 60, Some(0)),
            (30, 40, Some(1)),
            (35, 55, Some(2)),
            (60, 70, Some(0)),
        ];
        assert_eq!(nest(&spans, 8), [Some(0), Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(nest(&spans, 1), [Some(0), Some(0), None, Some(0), None, Some(0)]);
    }

    #[test]
    fn what_is_contained_by_chance_is_not_drawn_as_a_child() {
        // 1 lies inside 2 in time, and is its sibling.
        assert_eq!(nest(&[(0, 100, None), (10, 20, Some(0)), (5, 50, Some(0))], 8), [Some(0), Some(1), Some(0)]);
    }

    #[test]
    fn a_span_that_is_over_at_once_holds_its_child_and_frees_the_row() {
        assert_eq!(
            nest(&[(0, 9, None), (5, 5, Some(0)), (5, 5, Some(1)), (5, 9, Some(0))], 4),
            [Some(0); 4].map(|r| r).to_vec().as_slice()
        );
    }
}
