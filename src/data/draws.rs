/// Uniform numbers out of BLAKE3: a generator of a crate may change with its version, and training would not resume.
pub(super) struct Draws {
    words: blake3::OutputReader,
    buffer: [u8; 512],
    used: usize,
}

impl Draws {
    /// Stream number `stream` of a purpose: an epoch, say.
    pub fn new(purpose: &[u8], seed: u64, stream: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(purpose).update(&seed.to_le_bytes()).update(&stream.to_le_bytes());
        Self { words: hasher.finalize_xof(), buffer: [0; 512], used: 512 }
    }

    fn next(&mut self) -> u64 {
        if self.used == self.buffer.len() {
            self.words.fill(&mut self.buffer);
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.buffer[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(word)
    }

    /// 0, …, n − 1 with equal probability: the part of 2⁶⁴ that n does not divide is drawn again.
    pub fn below(&mut self, n: u64) -> u64 {
        let uneven = (u64::MAX - n + 1) % n;
        loop {
            let word = self.next();
            if word <= u64::MAX - uneven {
                return word % n;
            }
        }
    }
}
