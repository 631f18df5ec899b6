//! What the encoder finds out about each row: how its exponents and changes are distributed, and the scale that makes it smallest.

use crate::{
    Effort,
    context::Exponent,
    lowrank::{BELOW, CLASSES, Class},
    passes::{self, GROUP, Spread},
    rc::Learner,
    scales::{self, Model, UNCHANGED},
    strip::mirrored,
    token::token,
    train::{Histogram, Lengths},
    word::{difference, load, order},
};

/// Changes of a row that its scale is chosen by; more are thinned out evenly.
const CHANGES: usize = 384;
/// Steps around the first guess that are tried at most.
const REACH: i32 = 10;
/// Exponents there are, with classes where words are short enough to have them.
const KEYS: usize = 4096;

/// Exponents and changes of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Bits of the class below the exponent in what counts as an exponent here: none but for low-rank predictions.
    class_bits: u32,
    /// Exponents with the number of unchanged words of each.
    same: Vec<(u16, u32)>,
    /// Tokens of the changed words, perhaps thinned out, by ascending exponent.
    changes: Vec<u8>,
    /// Exponents of the changed words, each with where its run of tokens ends.
    runs: Vec<(u16, usize)>,
    /// Exponents and tokens of the changed words, in no order, in place of the former where the scale is not searched.
    pairs: Vec<(u16, u8)>,
    /// Changed words for each in `changes` or `pairs`.
    weight: u32,
    /// Words of a row in which changes are not rare, whose mean says enough; 0 where the scale is to be searched.
    dense: usize,
    /// The scale by the mean update: in a row of few changes that of the changed words.
    pub(crate) mean: i16,
    /// The scale by the mean update of all words.
    apart: i16,
    /// Words.
    words: usize,
    /// Changed words.
    pub(crate) changed: usize,
}

/// Buffers of [`Row::fill`].
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    /// Words of a row that are looked at, about.
    looks: usize,
    /// Rows of many changes get the scale of their mean.
    by_mean: bool,
    /// Unchanged words of each exponent, in two parts.
    counts: Box<[[u32; KEYS]; 2]>,
    exponents: Vec<u16>,
    all: Vec<(u16, u8)>,
    /// Where the changes of each exponent go; zeros between rows.
    starts: Vec<usize>,
    tokens: Vec<u8>,
    moved: Vec<u32>,
    wide: Vec<u32>,
}

impl Counter {
    pub(crate) fn new(effort: Effort) -> Self {
        Self {
            looks: match effort {
                Effort::Fast => 128,
                Effort::Default => 1024,
                Effort::Max => usize::MAX,
            },
            by_mean: effort != Effort::Max,
            counts: Box::new([[0; KEYS]; 2]),
            exponents: Vec::new(),
            all: Vec::new(),
            starts: vec![0; KEYS],
            tokens: Vec::new(),
            moved: Vec::new(),
            wide: Vec::new(),
        }
    }
}

impl Row {
    /// Measures a row; `classes` are those of a low-rank prediction, else empty. Returns false where nothing changed.
    pub(crate) fn fill<const W: usize>(
        &mut self,
        pair: (&[u8], &[u8]),
        classes: &[Class],
        exponent: Exponent,
        mantissa: u32,
        float: bool,
        counter: &mut Counter,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if crate::avx2::available() {
            // SAFETY: the CPU has AVX2, POPCNT and BMI1.
            return unsafe {
                self.fill_fast::<W>(pair, classes, exponent, mantissa, float, counter)
            };
        }
        self.fill_plainly::<W>(pair, classes, exponent, mantissa, float, counter)
    }

    /// [`Self::fill_plainly`] with this CPU's instructions.
    ///
    /// # Safety
    /// The CPU has AVX2, POPCNT and BMI1.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,popcnt,bmi1")]
    unsafe fn fill_fast<const W: usize>(
        &mut self,
        pair: (&[u8], &[u8]),
        classes: &[Class],
        exponent: Exponent,
        mantissa: u32,
        float: bool,
        counter: &mut Counter,
    ) -> bool {
        self.fill_plainly::<W>(pair, classes, exponent, mantissa, float, counter)
    }

    #[inline(always)]
    fn fill_plainly<const W: usize>(
        &mut self,
        (target, prediction): (&[u8], &[u8]),
        classes: &[Class],
        exponent: Exponent,
        mantissa: u32,
        float: bool,
        counter: &mut Counter,
    ) -> bool {
        self.class_bits = if classes.is_empty() {
            0
        } else {
            CLASSES.ilog2()
        };
        self.same.clear();
        self.changes.clear();
        self.runs.clear();
        self.pairs.clear();
        self.weight = 1;
        self.dense = 0;
        self.changed = 0;
        (self.mean, self.apart) = (UNCHANGED, UNCHANGED);
        self.words = target.len() / W;
        if target == prediction {
            return false;
        }
        let words = self.words;
        // An update larger than the weight itself says little in units of its last place.
        let cap = if float { 1u64 << mantissa } else { 1 << 40 };
        let Counter {
            looks,
            by_mean,
            counts,
            exponents,
            all,
            starts,
            tokens,
            moved,
            wide,
        } = counter;
        passes::tokens::<W>(target, prediction, float, tokens, moved, wide);
        exponent.fields::<W>(prediction, exponents);
        for (e, class) in exponents.iter_mut().zip(classes) {
            *e = *e << CLASSES.ilog2() | u16::from(*class & !BELOW);
        }
        let exponents = exponents.as_slice();
        // Puts the tokens of words with raw bits in their places.
        let complete = |group: usize, wide: &[u32], tokens: &mut [u8]| {
            let mut rest = wide[group];
            while rest != 0 {
                let i = group * GROUP + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
                tokens[i] = token::<W>(difference::<W>(order::<W>(t, float), order::<W>(p, float)));
            }
        };
        let groups = words.div_ceil(GROUP);
        if !classes.is_empty() {
            (0..groups).for_each(|group| complete(group, wide, tokens));
            wide.fill(0);
            for (token, class) in tokens.iter_mut().zip(classes) {
                *token = mirrored(*token, *class);
            }
        }
        let changes: usize = moved.iter().map(|m| m.count_ones() as usize).sum();
        self.changed = changes;
        let rare = is_rare(changes, words);
        if *by_mean && !rare && classes.is_empty() {
            self.dense = words;
        }
        if all.len() < words + 1 {
            all.resize(words + 1, (0, 0));
        }
        let list = all.as_mut_slice();
        let lowest = exponents.iter().fold(u16::MAX, |a, e| a.min(*e));
        let highest = exponents.iter().fold(0, |a, e| a.max(*e));
        let (lowest, highest) = (
            usize::from(lowest) & (KEYS - 1),
            usize::from(highest) & (KEYS - 1),
        );
        // Groups of words spread over the row stand for all of it; where changes are rare fewer will do, for all changes count.
        let looks = if rare { *looks / 8 } else { *looks };
        let step = (groups / (looks / GROUP).max(1)).max(1);
        let (mut seen, mut found) = (0usize, 0usize);
        for group in (0..groups).step_by(step) {
            complete(group, wide, tokens);
            let range = group * GROUP..words.min((group + 1) * GROUP);
            seen += range.len();
            let pairs = exponents[range.clone()].iter().zip(&tokens[range]);
            for (i, (e, token)) in pairs.enumerate() {
                // No branch on what is as good as random; two counters, so that one need not wait for the other.
                let different = *token != 0;
                counts[i & 1][usize::from(*e) & (KEYS - 1)] += u32::from(!different);
                list[found] = (*e, *token);
                found += usize::from(different);
            }
        }
        let whole = words as f64 / seen.max(1) as f64;
        let mut weight = whole;
        if rare {
            weight = 1.0;
            found = 0;
            for (group, moved) in moved.iter().enumerate() {
                if *moved == 0 {
                    continue;
                }
                complete(group, wide, tokens);
                let mut rest = *moved;
                while rest != 0 {
                    let i = group * GROUP + rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    list[found] = (exponents[i], tokens[i]);
                    found += 1;
                }
            }
        }
        let all = &all[..found];
        let [even, odd] = &mut **counts;
        for (e, (a, b)) in even
            .iter_mut()
            .zip(odd)
            .enumerate()
            .take(highest + 1)
            .skip(lowest)
        {
            if *a + *b > 0 {
                let same = f64::from(*a + *b) * whole;
                self.same
                    .push((u16::try_from(e).unwrap_or(0), rounded(same)));
            }
            (*a, *b) = (0, 0);
        }
        let spread = Spread::of::<W>();
        let class_bits = self.class_bits;
        // Exponents are taken less 512, within the range of a float's own.
        let mean: f64 = all
            .iter()
            .map(|(e, token)| {
                spread.lead(*token).min(cap) as f64
                    * f64::from_bits((u64::from(*e >> class_bits) + 511) << 52)
            })
            .sum();
        // Where few words changed, those that did say how large updates are.
        let among = if rare && *by_mean { changes } else { words };
        let scale = |among: usize| {
            scales::quantise(mean * weight / among.max(1) as f64).saturating_add(512 * 4)
        };
        (self.mean, self.apart) = (scale(among), scale(words));
        let step = all.len().div_ceil(CHANGES).max(1);
        self.weight = rounded(step as f64 * weight).max(1);
        let some = all.iter().step_by(step).copied();
        if self.dense > 0 {
            self.pairs.extend(some);
        } else {
            self.sort(some, starts);
        }
        true
    }

    /// Takes the mean of all words for the scale to begin with, as suits a tensor whose rows [`are_mixed`].
    pub(crate) fn set_apart(&mut self) {
        self.mean = self.apart;
    }

    /// Words, how many changed, and the scales by the one mean and the other.
    pub(crate) fn changes(&self) -> (usize, usize, [i16; 2]) {
        (self.words, self.changed, [self.mean, self.apart])
    }

    /// Whether the scale is that of the mean, whatever tables there are.
    pub(crate) fn is_settled(&self) -> bool {
        self.dense > 0 || self.mean == UNCHANGED
    }

    /// Fills `changes` and `runs`.
    fn sort(&mut self, all: impl Iterator<Item = (u16, u8)> + Clone, starts: &mut [usize]) {
        let (mut lowest, mut highest, mut total) = (KEYS - 1, 0usize, 0);
        for (e, _) in all.clone() {
            let e = usize::from(e) & (KEYS - 1);
            lowest = lowest.min(e);
            highest = highest.max(e);
            starts[e] += 1;
            total += 1;
        }
        let mut start = 0;
        for (e, place) in starts.iter_mut().enumerate().take(highest + 1).skip(lowest) {
            let count = std::mem::replace(place, start);
            if count > 0 {
                start += count;
                self.runs.push((u16::try_from(e).unwrap_or(0), start));
            }
        }
        self.changes.resize(total, 0);
        for (e, token) in all {
            let at = &mut starts[usize::from(e) & (KEYS - 1)];
            self.changes[*at] = token;
            *at += 1;
        }
        starts[lowest.min(highest)..=highest].fill(0);
    }

    /// Class and exponent of what counts as an exponent.
    fn split(&self, key: u16) -> (usize, i32) {
        let exponent = key >> self.class_bits;
        (
            usize::from(key - (exponent << self.class_bits)),
            i32::from(exponent),
        )
    }

    /// The runs of changes: class, exponent and tokens.
    fn runs(&self) -> impl Iterator<Item = ((usize, i32), &[u8])> {
        let mut from = 0;
        self.runs.iter().map(move |(e, to)| {
            let run = self.changes.get(from..*to).unwrap_or_default();
            from = *to;
            (self.split(*e), run)
        })
    }

    /// Bits of the row's tokens with `scale`.
    fn cost(&self, scale: i32, lengths: &Lengths) -> f32 {
        let same: u64 = self
            .same
            .iter()
            .map(|(key, n)| {
                let (class, e) = self.split(*key);
                u64::from(*n) * u64::from(lengths.still(class, scale, e))
            })
            .sum();
        let changes: u64 = self
            .runs()
            .map(|((class, e), run)| {
                let lengths = lengths.of(class, scale, e);
                run.iter()
                    .map(|t| u32::from(lengths[usize::from(*t)]))
                    .sum::<u32>()
            })
            .map(u64::from)
            .sum();
        (same + changes * u64::from(self.weight)) as f32 / 64.0
    }

    /// The scale that makes the row and its scale smallest, searched from the mean update and from the row before.
    pub(crate) fn choose(&self, lengths: &Lengths, model: &Model) -> i16 {
        if self.mean == UNCHANGED {
            return UNCHANGED;
        }
        if self.dense > 0 {
            return settled(self.mean, self.dense, model);
        }
        let cost = |scale: i32| self.cost(scale, lengths) + model.cost(scale);
        let mut best = i32::from(self.mean);
        let mut least = cost(best);
        for direction in [1, -1] {
            let start = best;
            let mut rises = 0;
            for step in 1..=REACH {
                let scale = start + direction * step;
                let c = cost(scale);
                if c < least {
                    (best, least) = (scale, c);
                    rises = 0;
                } else {
                    rises += 1;
                    if rises == 2 {
                        break;
                    }
                }
            }
            if best != start {
                break;
            }
        }
        if let Some(last) = model.last()
            && (last - best).abs() > 1
            && cost(last) < least
        {
            best = last;
        }
        i16::try_from(best).unwrap_or(self.mean)
    }

    /// Adds the row's tokens to `histogram`, `times` over.
    pub(crate) fn count(&self, scale: i16, times: u32, histogram: &mut Histogram) {
        if scale == UNCHANGED {
            return;
        }
        let scale = i32::from(scale);
        for (key, n) in &self.same {
            let (class, e) = self.split(*key);
            histogram.add(class, scale, e, 0, n.saturating_mul(times));
        }
        for (key, token) in &self.pairs {
            let (class, e) = self.split(*key);
            histogram.add(class, scale, e, *token, self.weight.saturating_mul(times));
        }
        for ((class, e), run) in self.runs() {
            for token in run {
                histogram.add(class, scale, e, *token, self.weight.saturating_mul(times));
            }
        }
    }
}

/// Whether so few words of a row changed that each counts.
fn is_rare(changed: usize, words: usize) -> bool {
    changed * 8 < words
}

/// The scale of a row of many changes: that of the mean update, or the row's before where that costs less.
fn settled(mean: i16, words: usize, model: &Model) -> i16 {
    let scale = i32::from(mean);
    let Some(last) = model.last() else {
        return mean;
    };
    // A distribution that is off by a factor of 2^(steps/4) costs about this much a word.
    let off = |steps: i32| 0.02 * (steps * steps) as f32 * words as f32;
    let stay = off(scale - last) + model.cost(last);
    if stay < model.cost(scale) {
        i16::try_from(last).unwrap_or(mean)
    } else {
        mean
    }
}

/// What one look at a row says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glance {
    /// Words, and how many of them changed.
    words: usize,
    pub(crate) changed: usize,
    /// The mean update, in the ulp of exponent [`passes::BIAS`]; in a row of few changes that of the changed words, which are
    /// those that the update was not rounded away from.
    mean: f64,
}

impl Glance {
    /// Looks at a row of words of two or four bytes.
    pub(crate) fn at<const W: usize>(
        target: &[u8],
        prediction: &[u8],
        exponent: Exponent,
        mantissa: u32,
        float: bool,
    ) -> Self {
        let words = target.len().min(prediction.len()) / W;
        let (changed, sum) = passes::measure::<W>(target, prediction, exponent, mantissa, float);
        let among = if is_rare(changed, words) {
            changed
        } else {
            words
        };
        Self {
            words,
            changed,
            mean: f64::from(sum) / among.max(1) as f64,
        }
    }

    /// As [`Row::changes`].
    pub(crate) fn changes(&self) -> (usize, usize, [i16; 2]) {
        let share = if is_rare(self.changed, self.words) {
            self.changed as f64 / self.words as f64
        } else {
            1.0
        };
        let scales = [scale_of(self.mean), scale_of(self.mean * share)];
        (self.words, self.changed, scales)
    }
}

/// Whether rows of many changes, of few and of next to none are in one tensor, as in an embedding whose tokens were not all trained
/// on: a row of few changes then is not like those before, and its scale must be searched. Told by what it would cost to say which
/// words changed, with rows of the same scale taken together: by the mean of the changed words, and by that of all. Of each row:
/// words, changed ones, the two scales.
pub(crate) fn are_mixed(rows: impl Iterator<Item = (usize, usize, [i16; 2])>) -> bool {
    /// Bits that the other scales may take more, for each row of few changes.
    const SCALE: f64 = 2.0;
    /// Words of a row by octaves below its largest, about.
    const SHARES: [f64; 3] = [0.5, 0.3, 0.2];
    let rows: Vec<_> = rows.filter(|(_, changed, _)| *changed > 0).collect();
    let rare = rows
        .iter()
        .filter(|(words, changed, _)| is_rare(*changed, *words));
    let rare = rare.count();
    if rare == 0 {
        // The two scales of every row are one.
        return false;
    }
    let [settled, apart] = [0, 1].map(|which| {
        let scales = rows.iter().map(|(.., scales)| scales[which]);
        let (first, last) = scales.fold((i16::MAX, i16::MIN), |(a, b), s| (a.min(s), b.max(s)));
        let octaves = 4 * SHARES.len();
        let mut sums = vec![(0.0, 0.0); usize::from(last.abs_diff(first)) + octaves];
        for (words, changed, scales) in &rows {
            let (words, changed) = (*words as f64, *changed as f64);
            let at = usize::from(scales[which].abs_diff(first));
            // Contexts are told by exponents too: smaller weights of the row are where larger ones of another are.
            for (sum, share) in sums[at..].iter_mut().step_by(4).zip(SHARES) {
                *sum = (sum.0 + words * share, sum.1 + changed * share);
            }
        }
        let bits = |(words, changed): &(f64, f64)| {
            let part = |n: f64| if n > 0.0 { n * (words / n).log2() } else { 0.0 };
            part(*changed) + part(words - changed)
        };
        sums.iter().map(bits).sum::<f64>()
    });
    settled > 1.1 * apart + SCALE * rare as f64
}

/// Changes that what rows before had weighs as much as, in a row of few changes.
const PRIOR: f64 = 12.0;
/// How fast that follows the rows.
const FOLLOW: f64 = 0.05;
/// How far from that a row's mean counts.
const FAR: f64 = 8.0;
/// Words to a changed one that the scale of such a row matters to.
const MATTERS: usize = 24;

/// The scales of rows, from their means alone: a row of few changes says little of its scale, and is like those before.
pub(crate) fn settle(glances: &[Glance], scales: &mut Vec<i16>) {
    let mut means: Vec<f64> = glances
        .iter()
        .map(|g| g.mean)
        .filter(|m| *m > 0.0)
        .collect();
    let middle = means.len() / 2;
    let mut prior = if means.is_empty() {
        0.0
    } else {
        *means.select_nth_unstable_by(middle, f64::total_cmp).1
    };
    let mut model = Model::new();
    for glance in glances {
        let scale = if glance.changed == 0 {
            UNCHANGED
        } else if is_rare(glance.changed, glance.words) {
            // One large weight that moved is no reason to give up on all others.
            let own = glance.mean.clamp(prior / FAR, prior * FAR);
            let n = glance.changed as f64;
            let mean = (n * own + PRIOR * prior) / (n + PRIOR);
            prior += FOLLOW * (own - prior);
            settled(scale_of(mean), MATTERS * glance.changed, &model)
        } else {
            settled(scale_of(glance.mean), glance.words, &model)
        };
        let _infallible = model.code(&mut Learner, scale);
        scales.push(scale);
    }
}

fn scale_of(mean: f64) -> i16 {
    scales::quantise(mean).saturating_add(passes::BIAS * 4)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped"
)]
fn rounded(x: f64) -> u32 {
    x.round().clamp(0.0, 1e9) as u32
}
