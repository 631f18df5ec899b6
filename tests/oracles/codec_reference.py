"""A second decoder of the codec's buffers, as docs/format-codec.md describes them: slow, small, standard library only.

    python codec_reference.py BUFFER [BASE DTYPE SHAPE]     # writes the tensor's bytes to standard output

BASE is a file with the base tensor's bytes; SHAPE is like 4x7 (empty for a scalar). Blocks of method 4 need `zstandard`.
"""

import math
import struct
import sys
from fractions import Fraction

# Name, bits, then exponent and mantissa bits of the floats the codec orders as numbers. A dtype's number is its place, from 1.
DTYPES = [
    ("BOOL", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("U8", 8), ("I8", 8), ("F8_E5M2", 8, 5, 2), ("F8_E4M3", 8, 4, 3),
    ("F8_E8M0", 8), ("I16", 16), ("U16", 16), ("F16", 16, 5, 10), ("BF16", 16, 8, 7), ("I32", 32), ("U32", 32),
    ("F32", 32, 8, 23), ("C64", 64, 8, 23), ("F64", 64, 11, 52), ("I64", 64), ("U64", 64),
]
BLOCK, CONTEXTS, LOWER, UNCHANGED = 1 << 19, 56, 1 << 16, None
ALPHABET = {1: (7, 0), 2: (5, 3), 4: (4, 2), 8: (6, 0)}  # by width: direct, sub


def check(condition, what):
    if not condition:
        raise ValueError(what)


class Bytes:
    """Takes bytes off the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        check(self.at + count <= len(self.data), "it ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self):
        return self.take(1)[0]

    def varint(self):
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def rest(self):
        return self.take(len(self.data) - self.at)


class Bits:
    """Bits, least significant first."""

    def __init__(self, data):
        self.data, self.at, self.bytes = data, 0, len(data)

    def take(self, count):
        start = self.at
        self.at += count
        return int.from_bytes(self.data[start // 8 : (self.at + 7) // 8], "little") >> start % 8 & (1 << count) - 1

    def ones(self):
        count = 0
        while self.take(1):
            check(self.at <= 8 * self.bytes, "bits end early")
            count += 1
        return count

    def end(self):
        check((self.at + 7) // 8 == self.bytes, "bits do not end where they should")


# Side information: an adaptive binary range coder.


class Model:
    def __init__(self, zero=1 << 15, seen=0, most=4):
        self.zero, self.seen, self.most = zero, seen, most


def mostly_zero():
    return Model(0xC000, 1)


class Number:
    def __init__(self):
        self.length = [Model() for _ in range(20)]
        self.second = [Model() for _ in range(21)]


class RangeDecoder:
    def __init__(self, data):
        self.data, self.at, self.range, self.code = data, 4, 0xFFFFFFFF, int.from_bytes((data + bytes(4))[:4], "big")

    def chance(self, zero):
        bound = (self.range >> 16) * zero
        one = self.code >= bound
        if one:
            self.code -= bound
            self.range -= bound
        else:
            self.range = bound
        while self.range < 1 << 24:
            self.range <<= 8
            self.code = self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.at += 1
        return one

    def bit(self, model):
        one = self.chance(model.zero)
        rate = 1 + model.seen
        model.zero += -(model.zero >> rate) if one else (65536 - model.zero) >> rate
        model.zero = min(max(model.zero, 64), 65536 - 64)
        model.seen = min(model.seen + 1, model.most)
        return one

    def number(self, model):
        length = 0
        while length < 20 and self.bit(model.length[length]):
            length += 1
        value = 1
        for i in reversed(range(length)):
            value = value << 1 | self.bit(model.second[length] if i + 1 == length else Model())
        return value - 1


def read_scales(data, rows):
    coder = RangeDecoder(data.take(data.varint()))
    unchanged, was_unchanged = [mostly_zero(), mostly_zero()], False
    moved, had_moved = [mostly_zero(), Model()], False
    down, went, step = [Model(), Model(), Model()], 0, Number()
    last, first, scales = 0, True, []
    for _ in range(rows):
        was_unchanged = coder.bit(unchanged[was_unchanged])
        if was_unchanged:
            scales.append(UNCHANGED)
            continue
        move = coder.bit(moved[had_moved])
        if move:
            negative = coder.bit(down[went])
            size = coder.number(step) + 1
            last += -size if negative else size
            went = 2 if negative else 1
        else:
            went = 0
        had_moved = move and not first
        first = False
        scales.append(last)
    return scales


def read_steps(data, count):
    coder = RangeDecoder(data.take(data.varint()))
    moved, down, size, last, steps = mostly_zero(), Model(), Number(), 0, []
    for _ in range(count):
        if coder.bit(moved):
            negative = coder.bit(down)
            change = coder.number(size) + 1
            last += -change if negative else change
        steps.append(last)
    return steps


class Tables:
    """Frequency tables and the map from contexts to them."""

    def __init__(self, data, layers=1):
        self.precision = data.byte()
        check(9 <= self.precision <= 12, "precision")
        first = data.varint()
        self.first = first >> 1 ^ -(first & 1)
        count = data.byte()
        coder = RangeDecoder(data.take(data.varint()))
        cold, new, last = mostly_zero(), mostly_zero(), 0
        self.map = []
        for _ in range(CONTEXTS * layers):
            if coder.bit(cold):
                self.map.append(0)
                continue
            if coder.bit(new) or last == 0:
                last += 1
            self.map.append(last)
        check(last == count, "number of tables")
        order = [0] + [t for i in range(1, 129) for t in (i, 256 - i)][:255]
        widest, numbers = Number(), [[Number() for _ in range(14)] for _ in range(3)]
        self.slots = []  # by table: (token, offset, frequency) of every slot
        for _ in range(count):
            frequencies, before = [0] * 256, [0, 0]
            for i in range(coder.number(widest)):
                side = 0 if i == 0 else 1 + i % 2
                near = before[1 - i % 2]
                frequency = coder.number(numbers[side][min(near.bit_length(), 13)])
                frequencies[order[i]] = before[i % 2] = frequency
            check(sum(frequencies) == 1 << self.precision and 0 < frequencies[0] < 1 << self.precision, "frequencies")
            self.slots.append([(t, o, f) for t, f in enumerate(frequencies) for o in range(f)])


def rans(data, lanes, tables, numbers):
    """The tokens of words whose tables have these numbers."""
    states = [int.from_bytes(data.take(4), "little") for _ in range(lanes)]
    mask, tokens = (1 << tables.precision) - 1, []
    for i, number in enumerate(numbers):
        x = states[i % lanes]
        token, offset, frequency = tables.slots[number - 1][x & mask]
        x = frequency * (x >> tables.precision) + offset
        if x < LOWER:
            x = x << 16 | int.from_bytes(data.take(2), "little")
        states[i % lanes] = x
        tokens.append(token)
    check(data.at == len(data.data) and all(x == LOWER for x in states), "tokens do not end where they should")
    return tokens


def difference(token, width, raw):
    """The difference of a token, its raw bits taken from `raw`."""
    direct, sub = ALPHABET[width]
    size = token if token < 128 else 256 - token
    if width > 1 and size >= 1 << direct:
        octave, following = divmod(size - (1 << direct), 1 << sub)
        count = min(octave + direct - sub, 8 * width - 1)
        size = (1 << sub | following) << count | raw.take(count)
    return size if token < 128 else -size


def move(word, d, width, is_float):
    """The word `d` further on in numeric order."""
    mask, top = (1 << 8 * width) - 1, 1 << 8 * width - 1
    if not is_float:
        return word + d & mask
    ordered = word ^ (mask if word & top else top)
    ordered = ordered + d & mask
    return ordered ^ (top if ordered & top else mask)


def patches(data, count):
    """Places and differences."""
    if not data:
        return
    data = Bytes(data)
    number, gap, size = data.varint(), data.byte(), data.byte()
    bits, place = Bits(data.rest()), 0
    for _ in range(number):
        place += (bits.ones() << gap) + bits.take(gap)
        check(place < count, "a patch lies past its strip")
        length = size + bits.ones()
        zigzag = (1 << length | bits.take(length)) - (1 << size)
        yield place, -(zigzag // 2 + 1) if zigzag % 2 else zigzag // 2 + 1
        place += 1
    bits.end()


class Tensor:
    def __init__(self, number, shape, header, base):
        name, bits, *layout = ("bytes", 8) if number == 0 else DTYPES[number - 1]
        self.name, self.layout = name, layout
        self.width = {16: 2, 32: 4, 64: 8}.get(bits, 1) if name != "C64" else 4
        elements = 1
        for d in shape:
            elements *= d
        check(elements * bits % 8 == 0, "half a byte")
        self.words = elements * bits // 8 // self.width
        self.common, self.base = self.predict(name, bits, shape, base)
        self.header, self.classes = None, [(0, False)] * self.common
        self.row = self.usual_row(number, shape)
        if header:
            data = Bytes(header)
            flags, strip, self.row = data.byte(), data.byte(), data.varint()
            check(flags in (1, 3, 5, 10, 12), "shared tables are not in the buffer")
            self.strip = 1 << strip
            if flags & 2:
                self.shift(read_steps(data, 1 << min(self.layout[1], 8)))
            if flags & 4:
                self.update(Bytes(data.take(data.varint())), shape)
            if not flags & 8:
                self.scales = read_scales(data, -(-self.common // self.row))
                self.header = Tables(data, 16 if flags & 4 else 1)
            check(not data.rest(), "the header is too long")

    def usual_row(self, number, shape):
        """Words of a row where no header says it."""
        row = self.words
        if number and len(shape) > 1:
            row = 1
            for d in shape[1:]:
                row *= d
        row = min(max(row, 1), max(self.words, 1))
        if row < 64:
            return row * -(-64 // row)
        return -(-row // -(-row // (1 << 14)))

    def predict(self, name, bits, shape, base):
        """Words in common with the base, and their predictions."""
        if base is None:
            return 0, []
        base_name, base_shape, data = base
        rows = shape == base_shape or len(shape) == len(base_shape) > 0 and shape[1:] == base_shape[1:]
        if not rows:
            return 0, []
        mine = theirs = 1
        for a, b in zip(shape, base_shape):
            mine, theirs = mine * a, theirs * b
        common = min(mine, theirs)
        if name == base_name != "bytes":
            words = common * bits // 8 // self.width
            return words, words_of(data, self.width)[:words]
        layout = next((d[2:] for d in DTYPES if d[0] == base_name and d[0] != "C64"), None)
        if layout and self.layout and name != "C64":
            width = (1 + sum(layout)) // 8
            return common, [cast(w, base_name, layout, name, self.layout) for w in words_of(data, width)[:common]]
        return 0, []

    def shift(self, steps):
        """Moves the predictions by steps that depend on their mantissa."""
        exponent, mantissa = self.layout
        for i, word in enumerate(self.base):
            if 0 < word >> mantissa & (1 << exponent) - 1 < (1 << exponent) - 1:
                step = steps[(word & (1 << mantissa) - 1) * len(steps) >> mantissa]
                self.base[i] = word + step & (1 << 8 * self.width) - 1

    def update(self, data, shape):
        """Adds a low-rank update to the predictions; says how far each lies from where it would round to another word."""
        cols = 1
        for d in shape[1:]:
            cols *= d
        rows = self.common // cols
        form, rank = data.byte(), data.varint()
        check(form < 4 and 0 < rank <= 512, "form of factors")
        number = lambda: Fraction(struct.unpack("<f", data.take(4))[0])
        if form & 1:
            scale = number()
            left, right = (given(data.take(data.varint())) for _ in range(2))
        else:
            scale, steps = Fraction(1), [number() for _ in range(rank)]
            coder = RangeDecoder(data.rest())
            u = read_factor(coder, rows * rank)
            left = [f32(u[k * rows + i] * steps[k]) for i in range(rows) for k in range(rank)]
            right = read_factor(coder, rank * cols)
        lowest, middle = {"BF16": (24, 150), "F16": (113, 153), "F32": (40, 166)}[self.name]
        for at, word in enumerate(self.base):
            i, j = divmod(at, cols)
            total = Fraction(0)
            for k in range(rank):
                total = f32(left[i * rank + k] * right[k * cols + j] + total)
            d, base = f32(scale * total), value(word, self.layout)
            below = d is not None and (d < 0 or d == 0 and scale < 0)
            if form & 2:
                d = rounded(d, *self.layout)
            y = None if base is None or d is None else f32(base + d)
            p = None if y is None else rounded(y, *self.layout)
            if p is None:
                continue
            # What rounds to zero from below is a negative zero; a sum that is zero is one where both terms are.
            negative = p < 0 or p == 0 and (y < 0 or y == 0 and base == 0 and word >> 8 * self.width - 1 and below)
            self.base[at] = word_of(p, negative, self.layout)
            rest = base + d - y if self.name == "F32" else y - p
            exponent = max(field(p), lowest)
            distance = f32(32768 - f32(abs(rest) * Fraction(2) ** (middle - exponent)))
            step = struct.unpack("<I", struct.pack("<f", max(distance, 0)))[0] >> 22
            self.classes[at] = (min(max(step, 269), 284) - 269, rest < 0)

    def blocks(self):
        """First and last word of each block; no block holds both words with and without a base."""
        for start, end in ((0, self.common), (self.common, self.words)):
            for at in range(start, end, BLOCK):
                yield at, min(at + BLOCK, end)

    def block(self, start, end, payload):
        data = Bytes(payload)
        method = data.byte()
        if method in (0, 2):
            check(end <= self.common, "no base")
            words = self.base[start:end]
            if method == 2:
                for at in range(start, end, self.strip):
                    to = min(at + self.strip, end)
                    words[at - start : to - start] = self.decode_strip(at, to, Bytes(data.take(data.varint())))
            check(not data.rest(), "bytes follow the last strip")
            return b"".join(w.to_bytes(self.width, "little") for w in words)
        if method == 1:
            return data.rest()
        if method == 3:
            return self.stand_alone(end - start, data)
        if method == 6:
            check(end <= self.common, "no base")
            words = self.base[start:end]
            for place, d in Learned(self, start, self.base[start:end], data).differences():
                words[place] = move(self.base[start + place], d, self.width, bool(self.layout))
            return b"".join(w.to_bytes(self.width, "little") for w in words)
        check(method == 4, "method")
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data.rest(), max_output_size=(end - start) * self.width)

    def table(self, at):
        """The table of a word: 0 where it is not coded."""
        scale = self.scales[at // self.row]
        if scale is UNCHANGED:
            return 0
        exponent = 1
        if self.layout:
            exponent = max(self.base[at] >> self.layout[1] & (1 << self.layout[0]) - 1, 1)
        context = min(max(scale - 4 * exponent - self.header.first, 0), CONTEXTS - 1)
        return self.header.map[self.classes[at][0] * CONTEXTS + context]

    def decode_strip(self, start, end, data):
        flags = data.byte()
        check(flags < 64 and flags & 7 <= 6, "strip flags")
        raw = data.varint() if flags & 16 else 0
        patched = data.varint() if flags & 32 else 0
        coder = Bytes(data.take(len(data.data) - data.at - raw - patched))
        raw, patched = Bits(data.take(raw)), data.take(patched)
        words = self.base[start:end]
        if flags & 8:
            tables = [self.table(at) for at in range(start, end)]
            tokens = iter(rans(coder, 1 << (flags & 7), self.header, [t for t in tables if t]))
            for i, table in enumerate(tables):
                if table:
                    token = next(tokens)
                    if self.classes[start + i][1]:
                        token = -token & 255
                    words[i] = move(words[i], difference(token, self.width, raw), self.width, bool(self.layout))
            raw.end()
        for place, d in patches(patched, end - start):
            words[place] = move(self.base[start + place], d, self.width, bool(self.layout))
        return words

    def stand_alone(self, count, data):
        exponent, mantissa = self.layout
        tables = Tables(Bytes(data.take(data.varint())))
        raw = Bits(data.take((count * (mantissa + 1) + 7) // 8))
        out = []
        for token in rans(Bytes(data.rest()), 32, tables, [1] * count):
            low, sign = raw.take(mantissa), raw.take(1)
            out.append((token << mantissa | low | sign << mantissa + exponent).to_bytes(self.width, "little"))
        return b"".join(out)


# Learned blocks: what is a float here is a double, every operation of which rounds once.

CURVE = [
    1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793, 47911,
    53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514, 65523, 65528, 65531, 65533,
    65534, 65535,
]


def squash(x):
    at, part = divmod(min(max(x + 2816, 0), 5631), 128)
    return CURVE[at] + ((CURVE[at + 1] - CURVE[at]) * part >> 7)


def stretches():
    x, out = -2047, []
    for p in range(4096):
        while x < 2047 and squash(x) < 16 * p + 8:
            x += 1
        out.append(x)
    return out


STRETCH = stretches()


class Mixer:
    def __init__(self, inputs):
        self.seen = [{} for _ in range(inputs)]
        self.weights = [65536 // inputs] * (inputs + 1)

    def code(self, coder, contexts):
        before = [seen.get(context, (1 << 21, 0)) for seen, context in zip(self.seen, contexts)]
        inputs = [STRETCH[chance >> 10] if count else 0 for chance, count in before] + [77]
        total = sum(x * (w >> 2) >> 8 for x, w in zip(inputs, self.weights))
        one = min(max(squash(total >> 6), 1), 65535)
        bit = coder.chance(65536 - one)
        error = 65536 - one if bit else -one
        for i, x in enumerate(inputs):
            self.weights[i] = min(max(self.weights[i] + (x * error + 32768 >> 16), -(1 << 20)), 1 << 20)
        for seen, context, (chance, count) in zip(self.seen, contexts, before):
            rate = 131072 // (2 * count + 3)
            chance += ((1 << 22) - 1 - chance) * rate >> 16 if bit else -(chance * rate >> 16)
            seen[context] = chance, min(count + 1, 500)
        return bit


NOISE = 2.5


def dot(a, b):
    total = 0.0
    for x, y in zip(a, b):
        total += x * y
    return total


def diagonal(rank, value):
    return [[value if k == l else 0.0 for l in range(rank)] for k in range(rank)]


def gain(doubt, by):
    out = [dot(row, by) for row in doubt]
    return out, NOISE + dot(out, by)


def correct(state, doubt, error, gained):
    out, spread = gained
    step = error / spread
    for k in range(len(state)):
        state[k] += out[k] * step
        share = out[k] / spread
        for l in range(len(state)):
            doubt[k][l] -= share * out[l]


def solution(rank, equations):
    matrix, right, inverse = diagonal(rank, NOISE), [0.0] * rank, diagonal(rank, 1.0)
    for by, value in equations:
        for k in range(rank):
            for l in range(rank):
                matrix[k][l] += by[k] * by[l]
            right[k] += by[k] * value
    for k in range(rank):
        pivot = 1.0 / matrix[k][k]
        matrix[k], inverse[k] = [x * pivot for x in matrix[k]], [x * pivot for x in inverse[k]]
        for n in range(rank):
            if n != k:
                factor = matrix[n][k]
                matrix[n] = [x - factor * y for x, y in zip(matrix[n], matrix[k])]
                inverse[n] = [x - factor * y for x, y in zip(inverse[n], inverse[k])]
    return [dot(row, right) for row in inverse], inverse


class Subspace:
    def __init__(self, rank, columns):
        self.rank, self.columns, state = rank, [], 1
        for _ in range(columns):
            column = []
            for _ in range(rank):
                state ^= state << 13 & (1 << 64) - 1
                state ^= state >> 7
                state ^= state << 17 & (1 << 64) - 1
                column.append((state >> 40) / 16777216 - 0.5)
            self.columns.append(column)
        self.doubts = [diagonal(rank, 1.0) for _ in range(columns)]
        self.mean, self.changes, self.row, self.first, self.next = [0.0] * rank, [], 0, 0, 256
        self.begin()

    def begin(self):
        self.mixture, self.doubt = self.mean[:], diagonal(self.rank, 1.0)

    def learn(self, column, value, expected, gained):
        correct(self.mixture, self.doubt, value - expected, gained)
        self.changes.append((self.row, column, value))

    def end_row(self):
        for _, column, value in self.changes[self.first :]:
            entries, doubt = self.columns[column], self.doubts[column]
            correct(entries, doubt, value - dot(self.mixture, entries), gain(doubt, self.mixture))
        self.mean = [mean + 0.05 * (now - mean) for mean, now in zip(self.mean, self.mixture)]
        self.first, self.row = len(self.changes), self.row + 1
        if len(self.changes) >= self.next:
            self.next = len(self.changes) + len(self.changes) // 4 + 256
            self.fit()
        self.begin()

    def fit(self):
        mixtures = [[0.0] * self.rank for _ in range(self.row)]
        for _ in range(2):
            for row in {row for row, _, _ in self.changes}:
                equations = [(self.columns[column], value) for at, column, value in self.changes if at == row]
                mixtures[row] = solution(self.rank, equations)[0]
            by_column = [[] for _ in self.columns]
            for row, column, value in self.changes:
                by_column[column].append((mixtures[row], value))
            for column, equations in enumerate(by_column):
                self.columns[column], inverse = solution(self.rank, equations)
                self.doubts[column] = [[x * NOISE for x in row] for row in inverse]
        self.mean = [0.0] * self.rank
        for mixture in mixtures:
            self.mean = [mean + x for mean, x in zip(self.mean, mixture)]
        self.mean = [mean / self.row for mean in self.mean]


def sixteenths(x):
    top = x.bit_length() - 1
    return 16 * top + (x >> top - 4 & 15)


def excess(density):
    changed, expected = density
    return sixteenths(changed + (4 << 16)) - sixteenths(expected + (4 << 16))


def band(x, width):
    return min(max(x // width, -12), 11) + 12


class Learned:
    """The differences of a block coded word by word."""

    def __init__(self, tensor, start, words, data):
        check(tensor.row <= 1 << 14, "rows")
        self.width, self.layout, self.row, self.start, self.words = tensor.width, tensor.layout, tensor.row, start, words
        rank, self.limit = data.byte(), data.varint()
        check(rank <= 8 and self.limit <= 2048, "rank or limit")
        self.patched = data.take(data.varint())
        self.coder = RangeDecoder(data.rest())
        columns = min(self.row, len(words))
        self.subspace, self.columns = Subspace(rank, columns), [(0, 0)] * columns
        self.change, self.size, self.sign = Mixer(6), Mixer(3), Mixer(4)
        self.sum = self.count = 0.0

    def differences(self):
        skipped, row, before, changes = self.start % self.row, (0, 0), 0, 0
        left, column = self.row - skipped, 0 if self.row > len(self.words) else skipped
        for place, word in enumerate(self.words):
            if left == 0:
                self.subspace.end_row()
                before = excess(row) + before >> 1
                row, column, left = (0, 0), 0, self.row
            at, column, left = column, column + 1, left - 1
            exponent = max(word >> self.layout[1] & (1 << self.layout[0]) - 1, 1) if self.layout else 1
            level = self.limit - 1 - exponent
            if level < 0:
                continue
            level = min(level, 47)
            expected = dot(self.subspace.mixture, self.subspace.columns[at])
            size = int(min(abs(expected) * 10.0, 15))
            across, down = excess(row) + (before >> 1), excess(self.columns[at])
            both, kind = (level, band(across + down, 4)), 0
            if self.layout and word & (1 << self.layout[1]) - 1:
                kind = 1 + (word >> self.layout[1] - 2 & 3)
            chance = self.change.seen[0].get(level, (1 << 21, 0))[0] >> 6
            contexts = level, (level, kind), (level, band(across, 3)), (level, band(down, 3)), (level, size), (*both, size)
            changed = self.change.code(self.coder, contexts)
            row = row[0] + (changed << 16), row[1] + chance
            self.columns[at] = self.columns[at][0] + (changed << 16), self.columns[at][1] + chance
            if changed:
                changes += 1
                check(changes <= len(self.words) // 4, "too many words changed")
                magnitude = self.magnitude(level, both, (level, size))
                yield place, -magnitude if self.negative(at, expected, magnitude / (1 << level)) else magnitude
        check(self.coder.at >= len(self.coder.data), "bytes follow the last word")
        yield from patches(self.patched, len(self.words))

    def magnitude(self, level, both, size):
        n, value = 0, 1
        while n < 8 * self.width - 1 and self.size.code(self.coder, ((level, n), (*both, n), (*size, n))):
            n += 1
        for bit in reversed(range(n)):
            if n - bit <= 3:
                step = 64 + value
                one = self.size.code(self.coder, ((-1 - n, step), (*both, step), (*size, step)))
            else:
                one = self.coder.chance(1 << 15)
            value = value << 1 | one
        return value

    def negative(self, column, expected, update):
        mean = self.sum / self.count if self.count else update
        self.sum += min(update, 4.0 * mean)
        self.count += 1.0
        size = update / mean
        octave, size = sum(size >= bound for bound in (0.25, 0.5, 1.0, 2.0, 4.0)), min(size, 3.0)
        gained = gain(self.subspace.doubt, self.subspace.columns[column])
        certain = int(min(abs(expected) / math.sqrt(gained[1]) * 6.0 + 0.5, 16))
        loud = int(min(abs(expected) * size * 8.0 + 0.5, 16))
        spread = sum(gained[1] >= bound for bound in (3.0, 4.0, 6.0))
        against = self.sign.code(self.coder, (certain, (certain, octave), loud, (loud, spread)))
        negative = against != (expected < 0.0)
        value = math.sqrt(size)
        self.subspace.learn(column, -value if negative else value, expected, gained)
        return negative


def words_of(data, width):
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def cast(word, source, source_layout, target, layout):
    """One rounding, to nearest, ties to even; by integers. Every NaN becomes the same one."""
    exponent, mantissa = source_layout
    sign, field, low = word >> exponent + mantissa, word >> mantissa & (1 << exponent) - 1, word & (1 << mantissa) - 1
    top = (1 << exponent) - 1
    nan = low == 7 and field == top if source == "F8_E4M3" else field == top and low
    infinite = field == top and not low and source != "F8_E4M3"
    value = low | (1 << mantissa if field else 0)  # times 2 ** power
    power = max(field, 1) - ((1 << exponent - 1) - 1) - mantissa
    exponent, mantissa = layout
    top = (1 << exponent) - 1
    if nan:
        return {"F8_E4M3": 0x7F, "F8_E5M2": 0x7E}.get(target, top << mantissa | 1 << mantissa - 1)
    if not value and not infinite:
        return sign << exponent + mantissa
    # The last place of the result: that of its own exponent, or of the smallest normal number.
    place = max(value.bit_length() - 1 + power, 2 - (1 << exponent - 1)) - mantissa
    shift = place - power
    if shift > 0:
        half, rest = 1 << shift - 1, value & (1 << shift) - 1
        value = (value >> shift) + (rest > half or rest == half and value >> shift & 1)
    else:
        value <<= -shift
    field = place + mantissa + (1 << exponent - 1) - 2  # one less: the leading bit adds it
    bits = (field << mantissa) + value
    largest = 0x7E if target == "F8_E4M3" else (top << mantissa) - 1
    if infinite or bits > largest:
        bits = 0x7F if target == "F8_E4M3" else top << mantissa
    return sign << exponent + mantissa | bits


# Low-rank updates: exact rational numbers, rounded where the page says so; None is what is not finite.


def rounded(x, exponent, mantissa):
    """To nearest, ties to even."""
    if x is None or x == 0:
        return x
    low = 2 - (1 << exponent - 1)
    size = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    if abs(x) < Fraction(2) ** size:
        size -= 1
    place = Fraction(2) ** (max(size, low) - mantissa)
    x = round(x / place) * place
    return x if abs(x) < Fraction(2) ** (1 << exponent - 1) else None


def f32(x):
    return rounded(Fraction(x), 8, 23)


def field(x):
    """The exponent field of an f32."""
    return struct.unpack("<I", struct.pack("<f", x))[0] >> 23 & 255


def value(word, layout):
    exponent, mantissa = layout
    bits = word >> mantissa & (1 << exponent) - 1
    if bits == (1 << exponent) - 1:
        return None
    low = word & (1 << mantissa) - 1 | (1 << mantissa if bits else 0)
    size = low * Fraction(2) ** (max(bits, 1) - (1 << exponent - 1) + 1 - mantissa)
    return -size if word >> exponent + mantissa else size


def word_of(x, negative, layout):
    exponent, mantissa = layout
    size = abs(x)
    low = 2 - (1 << exponent - 1)
    place = low if size < Fraction(2) ** low else size.numerator.bit_length() - size.denominator.bit_length()
    if size and size < Fraction(2) ** place and place > low:
        place -= 1
    whole = int(size / Fraction(2) ** (place - mantissa))
    bits = ((place - low) << mantissa) + whole
    return bits | negative << exponent + mantissa


def read_factor(coder, count):
    length = [Model(most=6) for _ in range(23)]
    below = [[Model(most=6) for _ in range(3)] for _ in range(23)]
    out = []
    for _ in range(count):
        bits = 0
        while bits <= 22 and coder.bit(length[bits]):
            bits += 1
        check(bits <= 22, "a factor's entry")
        if not bits:
            out.append(0)
            continue
        size = 1
        for i in range(bits - 1):
            model = below[bits][0 if i == 0 else 1 + (size & 1)] if i < 2 else Model()
            size = size << 1 | coder.bit(model)
        out.append(-size if coder.bit(Model()) else size)
    return out


def given(buffer):
    """The values of a self-contained buffer of floats."""
    layout = DTYPES[buffer[5] - 1][2:]
    return [value(w, layout) for w in words_of(decode(buffer), (1 + sum(layout)) // 8)]


def decode(buffer, base=None):
    """The bytes of the tensor; `base`: name of the dtype, shape, bytes."""
    data = Bytes(buffer)
    check(data.take(4) == b"SPDT", "not a delta")
    check(data.varint() <= 1, "a newer version")
    number = data.byte()
    shape = [data.varint() for _ in range(data.varint())]
    tensor = Tensor(number, shape, data.take(data.varint()), base)
    out = b"".join([tensor.block(start, end, data.take(data.varint())) for start, end in tensor.blocks()])
    check(not data.rest(), "it is too long")
    return out


if __name__ == "__main__":
    arguments = sys.argv[1:]
    parent = None
    if len(arguments) == 4:
        shape = [int(d) for d in arguments[3].split("x") if d]
        parent = (arguments[2], shape, open(arguments[1], "rb").read())
    sys.stdout.buffer.write(decode(open(arguments[0], "rb").read(), parent))
