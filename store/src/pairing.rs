//! Which tensor of the base does each tensor of a fine-tune come from?
//!
//! By name first; then by a name that differs in a prefix only; then by content, for what was renamed. A wrong pair costs
//! size, never correctness: the codec stores whatever the base does not explain.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::model::{Model, TensorHandle};
use crate::sample::sample_hash;

/// How a pair was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairedBy {
    /// The names are the same, or differ in a prefix such as `model.` only.
    Name,
    /// The names differ, the bytes are the same.
    Content,
    /// The base has nothing like it.
    None,
}

impl PairedBy {
    /// As it is shown: `name`, `content` or `none`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Content => "content",
            Self::None => "none",
        }
    }
}

/// A tensor of the target and what it is coded against.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// The tensor of the fine-tune.
    pub target: TensorHandle<'a>,
    /// Its counterpart; shape and dtype may differ where the name is the same.
    pub base: Option<TensorHandle<'a>>,
    /// How the counterpart was found.
    pub by: PairedBy,
    /// The index of an earlier pair whose target has the same bytes, dtype and shape.
    pub same_as: Option<usize>,
}

/// Pairs every tensor of `target`, in its own order, with a tensor of `base`.
///
/// Reads a few hundred bytes of each tensor of the target, and all bytes only of those that may be equal to another.
#[must_use]
pub fn pair<'a>(base: &'a Model, target: &'a Model) -> Vec<Pair<'a>> {
    let targets: Vec<TensorHandle<'a>> = target.tensors().collect();
    let bases: Vec<TensorHandle<'a>> = base.tensors().collect();
    let mut chosen = by_name(&bases, &targets);
    by_prefix(&bases, &targets, &mut chosen);
    let by_content = by_content(&bases, &targets, &chosen);
    let same_as = duplicates(&targets);
    targets
        .iter()
        .enumerate()
        .map(|(index, &target)| {
            let (base, by) = match (by_content[index], chosen[index]) {
                (Some(base), _) => (Some(bases[base]), PairedBy::Content),
                (None, Some(base)) => (Some(bases[base]), PairedBy::Name),
                (None, None) => (None, PairedBy::None),
            };
            Pair {
                target,
                base,
                by,
                same_as: same_as[index],
            }
        })
        .collect()
}

/// The same name, of the same file where several have it; else of the first with the same shape, else of the first.
fn by_name(bases: &[TensorHandle<'_>], targets: &[TensorHandle<'_>]) -> Vec<Option<usize>> {
    let mut names: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, base) in bases.iter().enumerate() {
        names.entry(base.name()).or_default().push(index);
    }
    targets
        .iter()
        .map(|target| {
            let candidates = names.get(target.name())?;
            let first_where = |test: &dyn Fn(&TensorHandle<'_>) -> bool| {
                candidates
                    .iter()
                    .copied()
                    .find(|&index| test(&bases[index]))
            };
            first_where(&|base| base.file.name == target.file.name)
                .or_else(|| first_where(&|base| base.shape() == target.shape()))
                .or_else(|| candidates.first().copied())
        })
        .collect()
}

/// Names where one is the other with a dotted prefix before it, of the same shape, and just one such candidate.
fn by_prefix(
    bases: &[TensorHandle<'_>],
    targets: &[TensorHandle<'_>],
    chosen: &mut [Option<usize>],
) {
    if chosen.iter().all(Option::is_some) {
        return;
    }
    let mut taken = vec![false; bases.len()];
    for base in chosen.iter().flatten() {
        taken[*base] = true;
    }
    // Whole names and their dotted endings, of the bases nobody took.
    let mut whole: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut endings: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, base) in bases.iter().enumerate().filter(|&(index, _)| !taken[index]) {
        whole.entry(base.name()).or_default().push(index);
        for ending in dotted_endings(base.name()) {
            endings.entry(ending).or_default().push(index);
        }
    }
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut uses = vec![0_u32; bases.len()];
    for (index, target) in targets
        .iter()
        .enumerate()
        .filter(|&(index, _)| chosen[index].is_none())
    {
        let longer_base = endings.get(target.name()).into_iter().flatten();
        let shorter_base = dotted_endings(target.name())
            .filter_map(|ending| whole.get(ending))
            .flatten();
        let mut fitting = longer_base
            .chain(shorter_base)
            .filter(|&&base| bases[base].shape() == target.shape());
        if let (Some(&base), None) = (fitting.next(), fitting.next()) {
            found.push((index, base));
            uses[base] += 1;
        }
    }
    for (index, base) in found {
        if uses[base] == 1 {
            chosen[index] = Some(base);
        }
    }
}

/// What is left of a name after each of its dots.
fn dotted_endings(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.')
        .map(move |(at, _)| &name[at + 1..])
        .filter(|ending| !ending.is_empty())
}

/// Equal bytes, for targets without a counterpart or with one of another shape or dtype.
fn by_content(
    bases: &[TensorHandle<'_>],
    targets: &[TensorHandle<'_>],
    chosen: &[Option<usize>],
) -> Vec<Option<usize>> {
    let mut result = vec![None; targets.len()];
    let differs = |target: &TensorHandle<'_>, base: &TensorHandle<'_>| {
        base.shape() != target.shape() || base.entry.dtype != target.entry.dtype
    };
    let seeking: Vec<usize> = (0..targets.len())
        .filter(|&index| targets[index].entry.bytes() > 0)
        .filter(|&index| chosen[index].is_none_or(|base| differs(&targets[index], &bases[base])))
        .collect();
    if seeking.is_empty() {
        return result;
    }
    let mut taken = vec![false; bases.len()];
    for base in chosen.iter().flatten() {
        taken[*base] = true;
    }
    // Only bases of a size and dtype that is sought are looked at.
    type Kind<'k> = (&'k str, u64);
    fn kind<'k>(tensor: &TensorHandle<'k>) -> Kind<'k> {
        (tensor.entry.dtype.as_str(), tensor.entry.bytes())
    }
    let sought: std::collections::HashSet<Kind<'_>> =
        seeking.iter().map(|&index| kind(&targets[index])).collect();
    let candidates: Vec<usize> = (0..bases.len())
        .filter(|&index| sought.contains(&kind(&bases[index])))
        .collect();
    let samples = |tensors: &[TensorHandle<'_>], which: &[usize]| -> Vec<blake3::Hash> {
        which
            .par_iter()
            .map(|&index| sample_hash(tensors[index].data()))
            .collect()
    };
    let base_samples = samples(bases, &candidates);
    let target_samples = samples(targets, &seeking);
    let mut by_sample: HashMap<(Kind<'_>, blake3::Hash), (Vec<usize>, Vec<usize>)> = HashMap::new();
    for (&index, sample) in seeking.iter().zip(target_samples) {
        by_sample
            .entry((kind(&targets[index]), sample))
            .or_default()
            .0
            .push(index);
    }
    for (&index, sample) in candidates.iter().zip(base_samples) {
        if let Some((_, bases)) = by_sample.get_mut(&(kind(&bases[index]), sample)) {
            bases.push(index);
        }
    }
    let matched: Vec<(usize, usize)> = by_sample
        .into_par_iter()
        .filter(|(_, (_, bases))| !bases.is_empty())
        .flat_map_iter(|(_, (seekers, candidates))| {
            let mut by_hash: HashMap<blake3::Hash, usize> = HashMap::new();
            for index in candidates {
                // The first of those nobody has taken; else the first.
                let best = by_hash.entry(content_hash(&bases[index])).or_insert(index);
                if taken[*best] && !taken[index] {
                    *best = index;
                }
            }
            seekers
                .into_iter()
                .filter_map(move |index| {
                    Some((index, *by_hash.get(&content_hash(&targets[index]))?))
                })
                .collect::<Vec<_>>()
        })
        .collect();
    for (index, base) in matched {
        result[index] = Some(base);
    }
    result
}

/// For each tensor, the first earlier one with the same bytes, dtype and shape.
fn duplicates(targets: &[TensorHandle<'_>]) -> Vec<Option<usize>> {
    let mut result = vec![None; targets.len()];
    let samples: Vec<Option<blake3::Hash>> = targets
        .par_iter()
        .map(|tensor| (tensor.entry.bytes() > 0).then(|| sample_hash(tensor.data())))
        .collect();
    let mut groups: HashMap<(&str, &[u64], blake3::Hash), Vec<usize>> = HashMap::new();
    for (index, sample) in samples.into_iter().enumerate() {
        if let Some(sample) = sample {
            let tensor = &targets[index];
            groups
                .entry((tensor.entry.dtype.as_str(), tensor.shape(), sample))
                .or_default()
                .push(index);
        }
    }
    let alike: Vec<usize> = groups
        .into_values()
        .filter(|group| group.len() > 1)
        .flatten()
        .collect();
    let mut hashes: Vec<(usize, blake3::Hash)> = alike
        .into_par_iter()
        .map(|index| (index, content_hash(&targets[index])))
        .collect();
    hashes.sort_by_key(|(index, _)| *index);
    let mut first: HashMap<(&str, &[u64], blake3::Hash), usize> = HashMap::new();
    for (index, hash) in hashes {
        let tensor = &targets[index];
        let earlier = *first
            .entry((tensor.entry.dtype.as_str(), tensor.shape(), hash))
            .or_insert(index);
        if earlier != index {
            result[index] = Some(earlier);
        }
    }
    result
}

/// BLAKE3 of a tensor's bytes; its pages are let go behind.
fn content_hash(tensor: &TensorHandle<'_>) -> blake3::Hash {
    const WINDOW: usize = 8 << 20;
    let mut hasher = blake3::Hasher::new();
    let mut at = tensor.entry.range.start;
    for piece in tensor.data().chunks(WINDOW) {
        hasher.update(piece);
        let end = at + piece.len() as u64;
        if tensor.entry.bytes() > WINDOW as u64 {
            tensor.file.release(at..end);
        }
        at = end;
    }
    hasher.finalize()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::testing::{Spec, noise, write};

    /// For each tensor of the target: its name, its base's, how, and the earlier one it equals.
    fn pairs(
        base: &[Spec<'_>],
        target: &[Spec<'_>],
    ) -> Vec<(String, Option<String>, PairedBy, Option<usize>)> {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("base.safetensors"), base).unwrap();
        write(&dir.path().join("target.safetensors"), target).unwrap();
        let base = Model::open_local(&dir.path().join("base.safetensors")).unwrap();
        let target = Model::open_local(&dir.path().join("target.safetensors")).unwrap();
        pair(&base, &target)
            .into_iter()
            .map(|pair| {
                let base = pair.base.map(|base| base.name().to_owned());
                (pair.target.name().to_owned(), base, pair.by, pair.same_as)
            })
            .collect()
    }

    fn t<'a>(name: &'a str, shape: &'a [u64], seed: u64) -> Spec<'a> {
        let len: u64 = shape.iter().product();
        (
            name,
            "U8",
            shape,
            noise(seed, usize::try_from(len).unwrap()),
        )
    }

    fn found(base: &str, by: PairedBy) -> (Option<String>, PairedBy) {
        (Some(base.to_owned()), by)
    }

    #[test]
    fn names_win_whatever_the_bytes() {
        let result = pairs(
            &[t("a", &[4], 1), t("b", &[4], 2)],
            &[t("a", &[4], 2), t("b", &[4], 1)],
        );
        assert_eq!(
            (result[0].1.clone(), result[0].2),
            found("a", PairedBy::Name)
        );
        assert_eq!(
            (result[1].1.clone(), result[1].2),
            found("b", PairedBy::Name)
        );
    }

    #[test]
    fn renamed_tensors_are_found_by_content() {
        let result = pairs(
            &[t("x", &[8, 100], 1), t("y", &[8, 100], 2)],
            &[t("p", &[8, 100], 2), t("q", &[8, 100], 3)],
        );
        assert_eq!(
            (result[0].1.clone(), result[0].2),
            found("y", PairedBy::Content)
        );
        assert_eq!((result[1].1.clone(), result[1].2), (None, PairedBy::None));
    }

    #[test]
    fn equal_samples_with_different_bytes_are_not_a_match() {
        let mut almost = noise(1, 100_000);
        almost[7777] ^= 1;
        let result = pairs(&[t("x", &[100_000], 1)], &[("p", "U8", &[100_000], almost)]);
        assert_eq!(result[0].2, PairedBy::None);
    }

    #[test]
    fn reshaped_tensors_keep_their_name_unless_the_bytes_are_elsewhere() {
        // Added vocabulary rows: the name stays the pair.
        let result = pairs(&[t("emb", &[10, 8], 1)], &[t("emb", &[12, 8], 1)]);
        assert_eq!(
            (result[0].1.clone(), result[0].2),
            found("emb", PairedBy::Name)
        );
        // A view of another shape, and another tensor of the same bytes.
        let result = pairs(
            &[t("w", &[10, 8], 1), t("v", &[80], 2)],
            &[t("w", &[80], 2)],
        );
        assert_eq!(
            (result[0].1.clone(), result[0].2),
            found("v", PairedBy::Content)
        );
    }

    #[test]
    fn tied_tensors() {
        let result = pairs(
            &[t("emb", &[10, 8], 1)],
            &[
                t("emb", &[10, 8], 2),
                t("head", &[10, 8], 2),
                t("z", &[10, 8], 1),
            ],
        );
        assert_eq!(result[1].3, Some(0));
        assert_eq!(
            (result[2].1.clone(), result[2].2),
            found("emb", PairedBy::Content)
        );
        assert_eq!((result[0].3, result[2].3), (None, None));
        // The same bytes in another shape are another tensor.
        assert_eq!(
            pairs(&[], &[t("a", &[4, 2], 1), t("b", &[8], 1)])[1].3,
            None
        );
        // Nothing at all is no duplicate.
        assert_eq!(pairs(&[], &[t("a", &[0], 1), t("b", &[0], 1)])[1].3, None);
    }

    #[test]
    fn prefixes_are_tolerated_when_there_is_one_way_to_read_them() {
        let base = [
            t("layers.0.w", &[4], 1),
            t("layers.1.w", &[4], 2),
            t("norm", &[2], 3),
        ];
        let target = [
            t("model.layers.0.w", &[4], 4),
            t("base_model.model.layers.1.w", &[4], 5),
            t("model.norm", &[3], 6),
        ];
        let result = pairs(&base, &target);
        assert_eq!(
            (result[0].1.clone(), result[0].2),
            found("layers.0.w", PairedBy::Name)
        );
        assert_eq!(
            (result[1].1.clone(), result[1].2),
            found("layers.1.w", PairedBy::Name)
        );
        assert_eq!(result[2].2, PairedBy::None, "another shape");
        let back = pairs(&target[..2], &base[..2]);
        assert_eq!(
            (back[0].1.clone(), back[0].2),
            found("model.layers.0.w", PairedBy::Name)
        );
        // Two could be meant.
        let result = pairs(&[t("a.w", &[4], 1), t("b.w", &[4], 2)], &[t("w", &[4], 3)]);
        assert_eq!(result[0].2, PairedBy::None);
        let result = pairs(&[t("w", &[4], 1)], &[t("a.w", &[4], 2), t("b.w", &[4], 3)]);
        assert_eq!((result[0].2, result[1].2), (PairedBy::None, PairedBy::None));
    }

    #[test]
    fn the_same_file_wins_where_a_name_is_in_several() {
        let dir = tempfile::tempdir().unwrap();
        for (model, seed) in [("base", 1), ("target", 10)] {
            for (index, part) in ["text", "unet"].iter().enumerate() {
                let path = dir.path().join(model).join(part).join("model.safetensors");
                write(&path, &[t("w", &[4], seed + index as u64)]).unwrap();
            }
        }
        let base = Model::open_local(&dir.path().join("base")).unwrap();
        let target = Model::open_local(&dir.path().join("target")).unwrap();
        for pair in pair(&base, &target) {
            assert_eq!(pair.base.unwrap().file.name, pair.target.file.name);
        }
    }
}
