//! Weighted round robin, the smooth kind: with weights 3 and 1 the order is
//! a a b a, not a a a b.

/// Chooses among servers by weight.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    servers: Vec<(i64, i64)>,
}

impl Balancer {
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        Self {
            servers: weights.into_iter().map(|w| (i64::from(w), 0)).collect(),
        }
    }

    /// The next server that is not among `tried`, if there is one.
    pub(crate) fn next(&mut self, tried: &[usize]) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, (weight, current)) in self.servers.iter_mut().enumerate() {
            if *weight == 0 || tried.contains(&index) {
                continue;
            }
            *current += *weight;
            total += *weight;
            if best.is_none_or(|(_, most)| *current > most) {
                best = Some((index, *current));
            }
        }
        let (index, _) = best?;
        if let Some((_, current)) = self.servers.get_mut(index) {
            *current -= total;
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(weights: &[u32], expected: &[usize]) {
        let mut balancer = Balancer::new(weights.iter().copied());
        let order: Vec<usize> = expected.iter().filter_map(|_| balancer.next(&[])).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn servers_take_turns_by_weight() {
        check(&[1], &[0, 0, 0]);
        check(&[1, 1, 1], &[0, 1, 2, 0, 1, 2]);
        check(&[3, 1], &[0, 0, 1, 0, 0, 0, 1, 0]);
        check(&[0, 1], &[1, 1]);
    }

    #[test]
    fn a_server_that_was_tried_is_not_chosen_again() {
        let mut balancer = Balancer::new([5, 1]);
        assert_eq!(balancer.next(&[0]), Some(1));
        assert_eq!(balancer.next(&[0, 1]), None);
    }
}
