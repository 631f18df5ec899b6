//! Reads PTX: the part of it that NVRTC makes of kernels without local memory or calls. What is not understood is an error
//! that names the line, so that a kernel is never run half-understood.

use std::collections::HashMap;

use crate::module::{
    Address, Binary, Compare, Function, Instruction, Kind, Op, Operand, Param, Rounding, SHARED,
    Shuffle, Space, Special, Ternary, Together, Type, Unary, Vote,
};

/// The functions of a module.
pub(crate) fn parse(text: &str) -> Result<Vec<Function>, String> {
    let text = without_comments(text);
    let mut rest = text.as_str();
    let mut shared = Shared::default();
    let mut functions = Vec::new();
    while let Some(entry) = rest.find(".entry") {
        let before = &rest[..entry];
        for statement in before.split(';') {
            shared.declare(statement)?;
        }
        rest = &rest[entry + 6..];
        let open = rest.find('(').ok_or("an entry without parameters")?;
        let name = rest[..open].trim().to_owned();
        let close = rest.find(')').ok_or("parameters without an end")?;
        let params = &rest[open + 1..close];
        rest = &rest[close + 1..];
        let start = rest.find('{').ok_or("an entry without a body")?;
        let directives = &rest[..start];
        let end = matching(rest, start).ok_or("a body without an end")?;
        let body = &rest[start + 1..end];
        rest = &rest[end + 1..];
        functions.push(function(name, params, directives, body, &shared)?);
    }
    if functions.is_empty() {
        return Err("no entry".to_owned());
    }
    Ok(functions)
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

fn matching(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(open + at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Variables in shared memory.
#[derive(Clone, Default)]
struct Shared {
    at: HashMap<String, u64>,
    size: u64,
}

impl Shared {
    /// Takes a declaration; other statements pass.
    fn declare(&mut self, statement: &str) -> Result<(), String> {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let Some(place) = words.iter().position(|w| *w == ".shared") else {
            return Ok(());
        };
        let mut align = 1;
        let mut bytes = 1;
        let mut words = words[place + 1..].iter();
        while let Some(word) = words.next() {
            if *word == ".align" {
                align = words
                    .next()
                    .and_then(|n| n.parse().ok())
                    .ok_or_else(|| format!("alignment: {statement}"))?;
            } else if let Some(ty) = word.strip_prefix('.') {
                bytes = u64::from(
                    type_of(ty)
                        .ok_or_else(|| format!("type: {statement}"))?
                        .bytes,
                );
            } else {
                let (name, count) = match word.split_once('[') {
                    Some((name, count)) => (name, count.trim_end_matches(']').trim()),
                    None => (*word, "1"),
                };
                // Of an external array the launch gives the size; it follows the others.
                let count: u64 = if count.is_empty() {
                    0
                } else {
                    count.parse().map_err(|_| format!("size: {statement}"))?
                };
                self.size = self.size.next_multiple_of(align);
                self.at.insert(name.to_owned(), SHARED + self.size);
                self.size += count * bytes;
            }
        }
        Ok(())
    }
}

fn type_of(name: &str) -> Option<Type> {
    let (kind, bytes) = match name {
        "pred" => (Kind::Predicate, 1),
        _ => {
            let (kind, bits) = name.split_at_checked(1)?;
            let kind = match kind {
                "s" => Kind::Signed,
                "u" => Kind::Unsigned,
                "b" => Kind::Bits,
                "f" => Kind::Float,
                _ => return None,
            };
            let bytes = match bits {
                "8" => 1,
                "16" => 2,
                "32" => 4,
                "64" => 8,
                _ => return None,
            };
            (kind, bytes)
        }
    };
    Some(Type { kind, bytes })
}

fn function(
    name: String,
    params: &str,
    directives: &str,
    body: &str,
    shared: &Shared,
) -> Result<Function, String> {
    let mut reader = Reader {
        registers: HashMap::new(),
        params: HashMap::new(),
        shared: shared.clone(),
        labels: HashMap::new(),
    };
    let mut list = Vec::new();
    let mut offset = 0usize;
    for param in params.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let words: Vec<&str> = param.split_whitespace().collect();
        let (Some(ty), Some(name)) = (
            words
                .iter()
                .filter_map(|w| w.strip_prefix('.'))
                .find_map(type_of),
            words.last(),
        ) else {
            return Err(format!("parameter: {param}"));
        };
        let size = usize::from(ty.bytes);
        offset = offset.next_multiple_of(size);
        reader.params.insert((*name).to_owned(), offset as u64);
        list.push(Param { offset, size });
        offset += size;
    }
    let max_threads = directives.find(".maxntid").map_or(1024, |at| {
        directives[at + 8..]
            .split(|c: char| !c.is_ascii_digit())
            .filter(|n| !n.is_empty())
            .take(3)
            .filter_map(|n| n.parse::<u32>().ok())
            .product()
    });

    // Labels first: branches go forward too.
    let mut statements = Vec::new();
    for statement in body.split(';') {
        // Braces of inner blocks: their registers have names of their own.
        let braces = |c: char| c.is_whitespace() || c == '{' || c == '}';
        let mut statement = statement.trim_start_matches(braces).trim();
        while let Some((label, rest)) = statement.split_once(':') {
            if !label.starts_with('$') {
                break;
            }
            reader
                .labels
                .insert(label.trim().to_owned(), statements.len());
            statement = rest.trim_start_matches(braces).trim();
        }
        if statement.is_empty() || statement.starts_with(".reg") || statement.starts_with(".pragma")
        {
            continue;
        }
        if statement.starts_with(".shared") {
            reader.shared.declare(statement)?;
            continue;
        }
        statements.push(statement);
    }
    let mut code = Vec::with_capacity(statements.len() + 1);
    for statement in statements {
        code.push(
            reader
                .instruction(statement)
                .map_err(|what| format!("{name}: {what}: {statement}"))?,
        );
    }
    code.push(Instruction {
        guard: None,
        op: Op::Return,
        text: "the end".to_owned(),
    });
    Ok(Function {
        name,
        params: list,
        code,
        registers: reader.registers.len(),
        shared: reader.shared.size as usize,
        max_threads,
    })
}

struct Reader {
    registers: HashMap<String, u32>,
    params: HashMap<String, u64>,
    shared: Shared,
    labels: HashMap<String, usize>,
}

impl Reader {
    fn register(&mut self, name: &str) -> Result<u32, String> {
        if !name.starts_with('%') {
            return Err(format!("'{name}' is no register"));
        }
        let next = self.registers.len() as u32;
        Ok(*self.registers.entry(name.to_owned()).or_insert(next))
    }

    fn operand(&mut self, text: &str) -> Result<Operand, String> {
        let axis = |text: &str| match text {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        if text == "%laneid" {
            return Ok(Operand::Special(Special::Lane));
        }
        if let Some((name, place)) = text.split_once('.')
            && let Some(place) = axis(place)
        {
            let special = match name {
                "%tid" => Special::Tid(place),
                "%ntid" => Special::Ntid(place),
                "%ctaid" => Special::Ctaid(place),
                "%nctaid" => Special::Nctaid(place),
                _ => return Err(format!("'{text}' is not known")),
            };
            return Ok(Operand::Special(special));
        }
        if text.starts_with('%') {
            return Ok(Operand::Register(self.register(text)?));
        }
        if let Some(at) = self.shared.at.get(text) {
            return Ok(Operand::Immediate(*at));
        }
        let number = if let Some(bits) = text.strip_prefix("0f").or(text.strip_prefix("0d")) {
            u64::from_str_radix(bits, 16).ok()
        } else if let Some(bits) = text.strip_prefix("0x") {
            u64::from_str_radix(bits.trim_end_matches('U'), 16).ok()
        } else if text.starts_with('-') {
            text.parse::<i64>().ok().map(i64::cast_unsigned)
        } else {
            text.trim_end_matches('U').parse().ok()
        };
        number
            .map(Operand::Immediate)
            .ok_or_else(|| format!("'{text}' is not known"))
    }

    fn address(&mut self, space: Space, text: &str) -> Result<Address, String> {
        let inner = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("'{text}' is no address"))?
            .trim();
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => (
                base.trim(),
                offset
                    .trim()
                    .parse::<i64>()
                    .map_err(|_| format!("offset in '{text}'"))?,
            ),
            None => (inner, 0),
        };
        let base = if space == Space::Param {
            let at = self
                .params
                .get(base)
                .ok_or_else(|| format!("no parameter '{base}'"))?;
            Operand::Immediate(*at)
        } else {
            self.operand(base)?
        };
        Ok(Address {
            space,
            base,
            offset: offset.cast_unsigned(),
        })
    }

    fn list(&mut self, text: &str) -> Result<Vec<Operand>, String> {
        elements(text)
            .into_iter()
            .map(|part| self.operand(part))
            .collect()
    }

    fn registers(&mut self, text: &str) -> Result<Vec<u32>, String> {
        elements(text)
            .into_iter()
            .map(|part| self.register(part))
            .collect()
    }

    fn instruction(&mut self, statement: &str) -> Result<Instruction, String> {
        let text = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut rest = statement;
        let mut guard = None;
        if let Some(after) = rest.strip_prefix('@') {
            let (predicate, after) = after
                .split_once(char::is_whitespace)
                .ok_or("a guard alone")?;
            let negated = predicate.starts_with('!');
            guard = Some((self.register(predicate.trim_start_matches('!'))?, negated));
            rest = after.trim();
        }
        let (name, operands) = match rest.split_once(char::is_whitespace) {
            Some((name, operands)) => (name, operands.trim()),
            None => (rest, ""),
        };
        let operands = split(operands);
        let op = self.op(name, &operands)?;
        Ok(Instruction { guard, op, text })
    }

    fn op(&mut self, name: &str, operands: &[&str]) -> Result<Op, String> {
        let parts: Vec<&str> = name.split('.').collect();
        let has = |what: &str| parts[1..].contains(&what);
        let types: Vec<Type> = parts[1..].iter().filter_map(|p| type_of(p)).collect();
        let ty = types.last().copied();
        let typed = || ty.ok_or_else(|| format!("no type in '{name}'"));
        let arg = |i: usize| {
            operands
                .get(i)
                .copied()
                .ok_or_else(|| format!("operand {i} is missing"))
        };
        if has("ftz") || has("approx") || has("cc") || has("sat") && parts[0] != "cvt" {
            return Err(format!("'{name}' is not supported"));
        }
        let float = ty.is_some_and(|ty| ty.kind == Kind::Float);
        let exact = matches!(
            parts[0],
            "add" | "sub" | "mul" | "fma" | "div" | "sqrt" | "rcp"
        );
        if float && exact && !has("rn") {
            return Err(format!("the rounding of '{name}' is not supported"));
        }
        Ok(match parts[0] {
            "mov" => {
                let ty = typed()?;
                let (to, from) = (arg(0)?, arg(1)?);
                if to.starts_with('{') {
                    let registers = elements(to)
                        .into_iter()
                        .map(|part| {
                            if part == "_" {
                                Ok(None)
                            } else {
                                self.register(part).map(Some)
                            }
                        })
                        .collect::<Result<Vec<_>, _>>()?;
                    let size = ty.bytes / registers.len() as u8;
                    Op::Unpack(registers, size, self.operand(from)?)
                } else if from.starts_with('{') {
                    let list = self.list(from)?;
                    let size = ty.bytes / list.len() as u8;
                    Op::Pack(list, size, self.register(to)?)
                } else {
                    Op::Unary(Unary::Move, ty, self.register(to)?, self.operand(from)?)
                }
            }
            "cvta" => Op::Unary(
                Unary::Move,
                typed()?,
                self.register(arg(0)?)?,
                self.operand(arg(1)?)?,
            ),
            "neg" | "abs" | "not" | "popc" | "clz" | "brev" | "sqrt" | "rcp" => {
                let op = match parts[0] {
                    "neg" => Unary::Negate,
                    "abs" => Unary::Absolute,
                    "not" => Unary::Not,
                    "popc" => Unary::Population,
                    "clz" => Unary::LeadingZeros,
                    "sqrt" => Unary::Root,
                    "rcp" => Unary::Reciprocal,
                    _ => Unary::Reverse,
                };
                Op::Unary(
                    op,
                    typed()?,
                    self.register(arg(0)?)?,
                    self.operand(arg(1)?)?,
                )
            }
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor"
            | "shl" | "shr" => {
                if has("NaN") {
                    return Err(format!("'{name}' is not supported"));
                }
                let op = match parts[0] {
                    "add" => Binary::Add,
                    "sub" => Binary::Subtract,
                    "mul" if has("wide") => Binary::MultiplyWide,
                    "mul" if has("hi") => Binary::MultiplyHigh,
                    "mul" => Binary::Multiply,
                    "div" => Binary::Divide,
                    "rem" => Binary::Remainder,
                    "min" => Binary::Minimum,
                    "max" => Binary::Maximum,
                    "and" => Binary::And,
                    "or" => Binary::Or,
                    "xor" => Binary::Xor,
                    "shl" => Binary::ShiftLeft,
                    _ => Binary::ShiftRight,
                };
                let (a, b) = (self.operand(arg(1)?)?, self.operand(arg(2)?)?);
                Op::Binary(op, typed()?, self.register(arg(0)?)?, a, b)
            }
            "fma" | "mad" | "selp" | "bfe" | "prmt" | "shf" => {
                let op = match parts[0] {
                    "fma" => Ternary::MultiplyAdd,
                    "mad" if has("wide") => Ternary::MultiplyAddWide,
                    "mad" if has("lo") => Ternary::MultiplyAdd,
                    "selp" => Ternary::Select,
                    "bfe" => Ternary::Extract,
                    "prmt" if parts.len() == 2 => Ternary::Permute,
                    "shf" if has("l") && has("wrap") => Ternary::FunnelLeft,
                    "shf" if has("r") && has("wrap") => Ternary::FunnelRight,
                    _ => return Err(format!("'{name}' is not supported")),
                };
                let operands = [
                    self.operand(arg(1)?)?,
                    self.operand(arg(2)?)?,
                    self.operand(arg(3)?)?,
                ];
                let [a, b, c] = operands;
                Op::Ternary(op, typed()?, self.register(arg(0)?)?, a, b, c)
            }
            "bfi" => {
                let mut list = [Operand::Immediate(0); 4];
                for (i, to) in list.iter_mut().enumerate() {
                    *to = self.operand(arg(i + 1)?)?;
                }
                Op::Insert(typed()?, self.register(arg(0)?)?, list)
            }
            "lop3" => {
                let table = match self.operand(arg(4)?)? {
                    Operand::Immediate(table) => table as u8,
                    _ => return Err("lop3 without a table".to_owned()),
                };
                let list = [
                    self.operand(arg(1)?)?,
                    self.operand(arg(2)?)?,
                    self.operand(arg(3)?)?,
                ];
                Op::Logic(self.register(arg(0)?)?, list, table)
            }
            "cvt" => {
                let [to, from] = types[..] else {
                    return Err(format!("'{name}' is not supported"));
                };
                if [to, from]
                    .iter()
                    .any(|ty| ty.kind == Kind::Float && ty.bytes < 4)
                    || to.kind == Kind::Float && (has("rz") || has("rm") || has("rp"))
                {
                    return Err(format!("'{name}' is not supported"));
                }
                let integer = if has("rni") {
                    Some(Rounding::Nearest)
                } else if has("rzi") {
                    Some(Rounding::Zero)
                } else if has("rmi") {
                    Some(Rounding::Down)
                } else if has("rpi") {
                    Some(Rounding::Up)
                } else {
                    None
                };
                Op::Convert {
                    to,
                    from,
                    integer,
                    saturate: has("sat"),
                    dst: self.register(arg(0)?)?,
                    src: self.operand(arg(1)?)?,
                }
            }
            "setp" => self.compare(&parts, typed()?, operands)?,
            "ld" => {
                let registers = self.registers(arg(0)?)?;
                Op::Load(typed()?, registers, self.address(space(&parts)?, arg(1)?)?)
            }
            "st" => {
                let at = self.address(space(&parts)?, arg(0)?)?;
                Op::Store(typed()?, at, self.list(arg(1)?)?)
            }
            "atom" | "red" => {
                let mut operands = operands.iter();
                let mut next = || operands.next().copied().ok_or("an operand is missing");
                let dst = if parts[0] == "atom" {
                    Some(self.register(next()?)?)
                } else {
                    None
                };
                let at = self.address(space(&parts)?, next()?)?;
                let value = self.operand(next()?)?;
                let op = match () {
                    () if has("add") => Some(Binary::Add),
                    () if has("min") => Some(Binary::Minimum),
                    () if has("max") => Some(Binary::Maximum),
                    () if has("and") => Some(Binary::And),
                    () if has("or") => Some(Binary::Or),
                    () if has("xor") => Some(Binary::Xor),
                    () if has("exch") => Some(Binary::Exchange),
                    () if has("inc") => Some(Binary::Increment),
                    () if has("cas") => None,
                    () => return Err(format!("'{name}' is not supported")),
                };
                let swap = if op.is_none() {
                    Some(self.operand(next()?)?)
                } else {
                    None
                };
                Op::Atomic {
                    op,
                    ty: typed()?,
                    dst,
                    at,
                    value,
                    swap,
                }
            }
            "bra" => Op::Branch(
                *self
                    .labels
                    .get(arg(0)?)
                    .ok_or_else(|| format!("no label '{}'", operands[0]))?,
            ),
            "ret" | "exit" => Op::Return,
            "bar" if has("warp") => Op::Warp(Together::Barrier, self.operand(arg(0)?)?),
            "bar" | "barrier" if has("sync") && operands == ["0"] => Op::Barrier,
            "shfl" if has("sync") => {
                let way = match () {
                    () if has("up") => Shuffle::Up,
                    () if has("down") => Shuffle::Down,
                    () if has("bfly") => Shuffle::Butterfly,
                    () => Shuffle::Index,
                };
                let (to, within) = match arg(0)?.split_once('|') {
                    Some((to, within)) => (to, Some(self.register(within)?)),
                    None => (arg(0)?, None),
                };
                let together = Together::Shuffle {
                    way,
                    to: self.register(to)?,
                    within,
                    value: self.operand(arg(1)?)?,
                    by: self.operand(arg(2)?)?,
                    clamp: self.operand(arg(3)?)?,
                };
                Op::Warp(together, self.operand(arg(4)?)?)
            }
            "vote" if has("sync") => {
                let vote = match () {
                    () if has("ballot") => Vote::Ballot,
                    () if has("any") => Vote::Any,
                    () if has("all") => Vote::All,
                    () => Vote::Uniform,
                };
                let value = arg(1)?;
                let together = Together::Vote {
                    vote,
                    to: self.register(arg(0)?)?,
                    value: self.operand(value.trim_start_matches('!'))?,
                    negated: value.starts_with('!'),
                };
                Op::Warp(together, self.operand(arg(2)?)?)
            }
            "redux" if has("sync") => {
                let op = match () {
                    () if has("add") => Binary::Add,
                    () if has("min") => Binary::Minimum,
                    () if has("max") => Binary::Maximum,
                    () if has("and") => Binary::And,
                    () if has("or") => Binary::Or,
                    () => Binary::Xor,
                };
                let together = Together::Reduce {
                    op,
                    ty: typed()?,
                    to: self.register(arg(0)?)?,
                    value: self.operand(arg(1)?)?,
                };
                Op::Warp(together, self.operand(arg(2)?)?)
            }
            "membar" | "fence" => Op::Nothing,
            _ => return Err(format!("'{name}' is not supported")),
        })
    }

    fn compare(&mut self, parts: &[&str], ty: Type, operands: &[&str]) -> Result<Op, String> {
        let arg = |i: usize| operands.get(i).copied().ok_or("an operand is missing");
        let (by, unordered) = match parts.get(1).copied().unwrap_or("") {
            "eq" => (Compare::Equal, false),
            "ne" => (Compare::NotEqual, false),
            "lt" | "lo" => (Compare::Less, false),
            "le" | "ls" => (Compare::LessEqual, false),
            "gt" | "hi" => (Compare::Greater, false),
            "ge" | "hs" => (Compare::GreaterEqual, false),
            "equ" => (Compare::Equal, true),
            "neu" => (Compare::NotEqual, true),
            "ltu" => (Compare::Less, true),
            "leu" => (Compare::LessEqual, true),
            "gtu" => (Compare::Greater, true),
            "geu" => (Compare::GreaterEqual, true),
            other => return Err(format!("comparison '{other}'")),
        };
        let with = match parts.get(2).copied() {
            Some("and") => Some(Binary::And),
            Some("or") => Some(Binary::Or),
            Some("xor") => Some(Binary::Xor),
            _ => None,
        };
        let with = match with {
            Some(op) => {
                let c = arg(3)?;
                Some((
                    op,
                    self.operand(c.trim_start_matches('!'))?,
                    c.starts_with('!'),
                ))
            }
            None => None,
        };
        let (dst, opposite) = match arg(0)?.split_once('|') {
            Some((dst, opposite)) => (dst, Some(self.register(opposite)?)),
            None => (arg(0)?, None),
        };
        Ok(Op::Compare {
            by,
            unordered,
            ty,
            dst: self.register(dst)?,
            opposite,
            a: self.operand(arg(1)?)?,
            b: self.operand(arg(2)?)?,
            with,
        })
    }
}

fn space(parts: &[&str]) -> Result<Space, String> {
    if parts.contains(&"param") {
        Ok(Space::Param)
    } else if parts.contains(&"shared") {
        Ok(Space::Shared)
    } else if parts.contains(&"local") || parts.contains(&"const") {
        Err(format!("'{}' is not supported", parts.join(".")))
    } else {
        Ok(Space::Global)
    }
}

/// Operands, at commas outside of braces and brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    let last = text[from..].trim();
    if !last.is_empty() {
        out.push(last);
    }
    out
}

/// The elements of `{a, b}`, or the one operand.
fn elements(text: &str) -> Vec<&str> {
    text.trim_start_matches('{')
        .trim_end_matches('}')
        .split(',')
        .map(str::trim)
        .collect()
}
