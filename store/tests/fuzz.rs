//! The fuzz target of safetensors headers on stable: damaged headers, a bounded number of them.

#![expect(clippy::cast_possible_truncation, reason = "random bytes")]

#[path = "../../fuzz/src/safetensors.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate exports it")]
mod targets;

const HEADERS: [&str; 4] = [
    r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#,
    r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]}}"#,
    r#"{"x":{"dtype":"I64","shape":[18446744073709551615,2],"data_offsets":[0,18446744073709551615]}}"#,
    "{}",
];

#[test]
fn headers_are_errors_or_values() {
    let mut state = 0x5eedu64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize
    };
    let pieces: [&[u8]; 8] = [
        b"-1",
        b"1e99",
        b"[",
        b"\"",
        b"null",
        b"99999999999999999999",
        b"\\u0000",
        b"{\"a\":",
    ];
    for _ in 0..20_000 {
        let text = HEADERS[next() % HEADERS.len()];
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(&[0; 16]);
        for _ in 0..1 + next() % 3 {
            let at = next() % bytes.len();
            match next() % 4 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes.truncate(at.max(1)),
                2 => bytes[at] = next() as u8,
                _ => bytes
                    .splice(at..at, pieces[next() % pieces.len()].iter().copied())
                    .for_each(drop),
            }
        }
        if next() % 2 == 0 && bytes.len() > 8 {
            // The length put right again, so that what follows it is looked at.
            let length = (bytes.len() as u64 - 8).to_le_bytes();
            bytes[..8].copy_from_slice(&length);
        }
        targets::header(&bytes);
    }
}
