use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;

use super::{BadLine, DataError, Origin, Reason, Record, Result, form::Line};

/// Longer than any pair; a line without an end must not fill the memory.
const LONGEST_LINE: u64 = 64 << 20;
const BUFFER: usize = 1 << 18;
const GZIP: &[u8] = &[0x1f, 0x8b];
const PARQUET: &[u8] = b"PAR1";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The pairs of a file, one after the other: JSON Lines, plain or under gzip, or parquet with the feature `parquet`;
/// the content says which.
///
/// A broken line is an item as any other, [`DataError::Line`], and reading goes on after it. After another error it has
/// ended. [`tokenize`](fn@super::tokenize) collects broken lines. Several files: `readers.into_iter().flatten()`.
///
/// | form | fields |
/// | --- | --- |
/// | explicit prompt | `prompt`, `chosen`, `rejected`: text, or lists of messages `{"role", "content"}` |
/// | implicit prompt | `chosen`, `rejected`: messages, HH-style text (`\n\nHuman: … \n\nAssistant: …`) or other text |
/// | votes | `prompt`, `responses: [a, b]`, `votes: [{"annotator", "choice"}]` (0, 1 or between, ½ a tie), or `soft_label`, or `gold` |
///
/// What the responses begin with in common is the implicit prompt. Each form may have `weight` and `gold`, all but the
/// last `margin`, `ref_chosen_logps`, `ref_rejected_logps`, `score_chosen`, `score_rejected` ([`Column`](super::Column)),
/// a conversation `tools`. Where `prompt` is text and the responses are conversations that repeat it (UltraFeedback), it
/// is found in them. Of `responses` the one with the larger share of the votes is called chosen.
pub struct PreferenceReader {
    file: Arc<Path>,
    rows: Rows,
    line: u64,
    ended: bool,
}

enum Rows {
    Lines(Box<dyn BufRead + Send>),
    #[cfg(feature = "parquet")]
    Table(Box<super::table::Table>),
}

impl PreferenceReader {
    /// Opens a file and looks at its first bytes.
    ///
    /// # Errors
    /// [`Io`](DataError::Io), [`NeedsParquet`](DataError::NeedsParquet), and `Parquet` with the feature.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| DataError::Io { file: path.to_owned(), source };
        let mut plain = BufReader::with_capacity(BUFFER, File::open(path).map_err(io)?);
        let start = plain.fill_buf().map_err(io)?;
        let rows = if start.starts_with(GZIP) {
            Rows::Lines(Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain))))
        } else if start.starts_with(PARQUET) {
            table(path)?
        } else {
            if start.starts_with(BYTE_ORDER_MARK) {
                plain.consume(BYTE_ORDER_MARK.len());
            }
            Rows::Lines(Box::new(plain))
        };
        Ok(Self { file: Arc::from(path), rows, line: 0, ended: false })
    }

    /// The next row that is not blank.
    fn row(&mut self) -> Option<Result<std::result::Result<Line, Reason>>> {
        match &mut self.rows {
            Rows::Lines(lines) => loop {
                let mut bytes = Vec::new();
                let io = |source| DataError::Io { file: self.file.to_path_buf(), source };
                match lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
                    Ok(0) => return None,
                    Ok(_) => self.line += 1,
                    Err(source) => return Some(Err(io(source))),
                }
                if bytes.len() as u64 == LONGEST_LINE && bytes.last() != Some(&b'\n') {
                    let rest = lines.skip_until(b'\n').map_err(io);
                    return Some(rest.map(|_| Err(Reason::TooLong { limit: LONGEST_LINE })));
                }
                if !bytes.trim_ascii().is_empty() {
                    return Some(Ok(Line::parse(&bytes)));
                }
            },
            #[cfg(feature = "parquet")]
            Rows::Table(table) => {
                let row = table.row()?;
                self.line += 1;
                Some(row.map_err(|source| DataError::Parquet { file: self.file.to_path_buf(), source }))
            }
        }
    }
}

#[cfg(feature = "parquet")]
fn table(path: &Path) -> Result<Rows> {
    let file = File::open(path).map_err(|source| DataError::Io { file: path.to_owned(), source })?;
    let table = super::table::Table::open(file);
    table
        .map(|table| Rows::Table(Box::new(table)))
        .map_err(|source| DataError::Parquet { file: path.to_owned(), source })
}

#[cfg(not(feature = "parquet"))]
fn table(path: &Path) -> Result<Rows> {
    Err(DataError::NeedsParquet { file: path.to_owned() })
}

impl Iterator for PreferenceReader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.row();
        self.ended = !matches!(row, Some(Ok(_)));
        let origin = Origin { file: Some(Arc::clone(&self.file)), line: self.line };
        Some(row?.and_then(|line| {
            let record = line.and_then(|line| line.into_record(origin.clone()));
            record.map_err(|reason| DataError::Line(BadLine { origin, reason }))
        }))
    }
}

impl fmt::Debug for PreferenceReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreferenceReader").field("file", &self.file).field("line", &self.line).finish_non_exhaustive()
    }
}
