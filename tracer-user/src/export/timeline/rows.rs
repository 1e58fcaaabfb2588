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

/// A span of a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub start: u64,
    pub end: u64,
    /// The parent's place in the list; a smaller one than its own.
    pub parent: Option<usize>,
}

/// Spans by their place in the list, in the order to draw them in, each with its row, so that on every row they nest as the tree does: a
/// span lies below its parent, or on a row of its own. `None` for what finds no row among `limit`. In that order what ends comes before what
/// begins at the same time.
pub(super) fn nest(spans: &[Shape], limit: usize) -> Vec<(usize, Option<usize>)> {
    let mut depths: Vec<usize> = Vec::with_capacity(spans.len());
    for span in spans {
        depths.push(span.parent.and_then(|parent| depths.get(parent)).map_or(0, |depth| depth + 1));
    }
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&place| (spans[place].start, depths[place], spans[place].end, place));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut place_on_a_row = |place: usize| {
        let Shape { start, end, parent } = spans[place];
        let mut fits = |open: &mut Vec<usize>| {
            while open.last().is_some_and(|&top| spans[top].end <= start && Some(top) != parent) {
                open.pop();
            }
            open.last().is_none_or(|&top| Some(top) == parent && end <= spans[top].end)
        };
        let row = rows.iter_mut().position(&mut fits).unwrap_or(rows.len());
        if row == rows.len() {
            if row >= limit {
                return None;
            }
            rows.push(Vec::new());
        }
        rows[row].push(place);
        Some(row)
    };
    order.into_iter().map(|place| (place, place_on_a_row(place))).collect()
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

    /// Rows in the order of the list.
    fn rows_of(spans: &[(u64, u64, Option<usize>)], limit: usize) -> Vec<Option<usize>> {
        let shapes: Vec<_> = spans.iter().map(|&(start, end, parent)| Shape { start, end, parent }).collect();
        let mut placed = nest(&shapes, limit);
        placed.sort_unstable();
        placed.into_iter().map(|(_, row)| row).collect()
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
        assert_eq!(rows_of(&spans, 8), [Some(0), Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(rows_of(&spans, 1), [Some(0), Some(0), None, Some(0), None, Some(0)]);
    }

    #[test]
    fn what_is_contained_by_chance_is_not_drawn_as_a_child() {
        // 1 lies inside 2 in time, and is its sibling.
        assert_eq!(rows_of(&[(0, 100, None), (10, 20, Some(0)), (5, 50, Some(0))], 8), [Some(0), Some(1), Some(0)]);
    }

    #[test]
    fn what_reaches_beyond_its_parent_lies_beside_it() {
        assert_eq!(rows_of(&[(0, 10, None), (5, 12, Some(0))], 8), [Some(0), Some(1)]);
    }

    #[test]
    fn a_span_that_is_over_at_once_leaves_the_row_to_the_next() {
        assert_eq!(rows_of(&[(0, 9, None), (5, 5, Some(0)), (5, 9, Some(0))], 8), [Some(0); 3]);
        // A parent without a time holds its child.
        assert_eq!(rows_of(&[(0, 9, None), (5, 5, Some(0)), (5, 5, Some(1))], 8), [Some(0); 3]);
    }
}
