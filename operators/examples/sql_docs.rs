//! Prints `docs/sql.md`: `cargo run -p sparse-operators --example sql_docs > docs/sql.md`.

fn main() {
    print!("{}", sparse_operators::docs::sql_docs());
}
