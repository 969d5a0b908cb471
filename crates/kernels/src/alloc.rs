//! A global allocator that keeps large freed blocks for the next training step.
//!
//! A training step frees and asks for the same large blocks over and over. The system allocator gives them
//! back to the kernel and gets fresh pages, which costs a page fault and a zeroed page every 4 KiB: on a
//! CPU that is a good part of the step. [`CachingAllocator`] keeps freed blocks of at least [`LARGE`] bytes
//! in lists by size class, up to a bound; everything else goes to the system allocator.
//!
//! Batches of changing sizes would fill lists of ever more classes. So blocks of other classes are given back
//! before all large blocks together, used or free, exceed what was ever in use at once by more than an eighth.
//!
//! It is opt-in, for programs that train:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(1 << 30);
//! # fn main() {}
//! ```

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "size classes of a fixed table")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks below this size are not cached.
pub const LARGE: usize = 128 << 10;

/// Size classes per power of two: a block is at most an eighth larger than asked for.
const PER_DOUBLING: usize = 8;
const CLASSES: usize = usize::BITS as usize * PER_DOUBLING;
/// Alignment of cached blocks. Stricter requests go to the system.
const ALIGN: usize = 64;
/// Blocks of at least this size are aligned to it, and the kernel is asked to back them with huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// See [`headroom`].
static HEADROOM: AtomicUsize = AtomicUsize::new(0);

/// By how many bytes free blocks of other sizes may still make the process larger than it was, though no more are in
/// use at once; 0 without a [`CachingAllocator`]. A short rehearsal sees less of them than a long run.
#[must_use]
pub fn headroom() -> usize {
    HEADROOM.load(Ordering::Relaxed)
}

/// Most bytes of large blocks, in use and free, when at most `peak` were in use at once.
const fn bound(peak: usize) -> usize {
    peak + peak / 8
}

/// Keeps up to a fixed number of bytes in freed large blocks.
#[derive(Debug)]
pub struct CachingAllocator {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug)]
struct State {
    /// The first free block of each size class. The first bytes of a free block hold the address of the
    /// next one.
    free: [*mut u8; CLASSES],
    cached: usize,
    /// Bytes of the large blocks in use, and the most there ever were.
    live: usize,
    peak: usize,
    /// Most bytes of large blocks, in use and free, there ever were.
    most: usize,
    /// Class that gives up a block next when the bound is reached.
    hand: usize,
}

// SAFETY: the pointers own free blocks, which belong to no thread.
unsafe impl Send for State {}

/// A size class: its number and the layout its blocks were allocated with.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Class {
    index: usize,
    block: Layout,
}

impl Class {
    /// The class for a request, or `None` when the system serves it. Depends on nothing but `layout`, so
    /// freeing takes the same way as allocating.
    fn of(layout: Layout) -> Option<Self> {
        if layout.size() < LARGE || layout.align() > ALIGN {
            return None;
        }
        let doubling = (layout.size() - 1).ilog2() as usize;
        let shift = doubling - PER_DOUBLING.ilog2() as usize;
        let steps = (layout.size() - 1) >> shift; // PER_DOUBLING .. 2 * PER_DOUBLING
        Self::numbered(doubling * PER_DOUBLING + steps - PER_DOUBLING)
    }

    fn numbered(index: usize) -> Option<Self> {
        let shift = index / PER_DOUBLING - PER_DOUBLING.ilog2() as usize;
        let size = (index % PER_DOUBLING + PER_DOUBLING + 1).checked_shl(shift as u32)?;
        let block = Layout::from_size_align(size, if size >= HUGE_PAGE { HUGE_PAGE } else { ALIGN }).ok()?;
        Some(Self { index, block })
    }
}

/// The class of the smallest cached blocks.
const FIRST_CLASS: usize = (LARGE.ilog2() as usize - 1) * PER_DOUBLING;

impl CachingAllocator {
    /// Keeps at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        let state = State { free: [ptr::null_mut(); CLASSES], cached: 0, live: 0, peak: 0, most: 0, hand: FIRST_CLASS };
        Self { state: Mutex::new(state), limit }
    }

    /// Bytes in free blocks right now.
    pub fn cached(&self) -> usize {
        self.state().cached
    }

    /// Gives all free blocks back to the system.
    pub fn trim(&self) {
        self.state().shrink_to(0);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a block handed out.
    fn take(&mut self, class: Class) {
        self.live += class.block.size();
        self.peak = self.peak.max(self.live);
    }

    /// Free bytes that may be kept beside the blocks in use.
    fn room(&self) -> usize {
        bound(self.peak).saturating_sub(self.live)
    }

    /// Notes that a block came from the system.
    fn grown(&mut self) {
        self.most = self.most.max(self.live + self.cached);
        HEADROOM.store(bound(self.peak).saturating_sub(self.most), Ordering::Relaxed);
    }

    fn pop(&mut self, class: Class) -> Option<*mut u8> {
        let block = self.free[class.index];
        if block.is_null() {
            return None;
        }
        // SAFETY: a block in a list is allocated, unused, and starts with the address `push` stored.
        self.free[class.index] = unsafe { block.cast::<*mut u8>().read() };
        self.cached -= class.block.size();
        Some(block)
    }

    /// # Safety
    /// `block` was allocated with `class.block`, and nobody uses it.
    unsafe fn push(&mut self, class: Class, block: *mut u8) {
        // SAFETY: the block is ours, larger than an address, and aligned for one.
        unsafe { block.cast::<*mut u8>().write(self.free[class.index]) };
        self.free[class.index] = block;
        self.cached += class.block.size();
    }

    /// Frees blocks, going round the classes, until at most `limit` bytes are left.
    fn shrink_to(&mut self, limit: usize) {
        while self.cached > limit {
            self.hand = if self.hand + 1 < CLASSES { self.hand + 1 } else { FIRST_CLASS };
            let Some(class) = Class::numbered(self.hand) else { continue };
            if let Some(block) = self.pop(class) {
                // SAFETY: blocks of this class were allocated with its layout.
                unsafe { System.dealloc(block, class.block) };
            }
        }
    }
}

/// Bytes that glibc may keep free at the end of its heap: activations below [`LARGE`] come and go with every step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM: libc::c_int = 32 << 20;

/// Has glibc map every large block by itself. Left alone, it soon takes them from its heap, where a freed block stays
/// resident below the next one in use.
fn map_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers; takes no pointer and allocates nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
    }
}

/// Asks for huge pages behind a fresh block; failing is harmless.
fn advise(block: *mut u8, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE && !block.is_null() {
        // SAFETY: the range is inside a block we own, and the advice does not change its contents.
        unsafe { libc::madvise(block.cast(), layout.size() / HUGE_PAGE * HUGE_PAGE, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (block, layout);
}

// SAFETY: a block is handed out again only after it was freed, its class's layout is at least as large and
// as aligned as every request of the class, and `Class::of` depends on the layout alone.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Class::of(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        {
            let mut state = self.state();
            if state.peak == 0 {
                map_large_blocks();
            }
            state.take(class);
            if let Some(block) = state.pop(class) {
                return block;
            }
            let room = state.room();
            state.shrink_to(room);
            state.grown();
        }
        // SAFETY: the layout's size is not zero.
        let block = unsafe { System.alloc(class.block) };
        if block.is_null() {
            self.state().live -= class.block.size();
        }
        advise(block, class.block);
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Class::of(layout).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise; the block has at least `layout.size()` bytes.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = Class::of(layout) else {
            // SAFETY: the caller's promise, and `alloc` went to the system too.
            return unsafe { System.dealloc(block, layout) };
        };
        let mut state = self.state();
        state.live -= class.block.size();
        if class.block.size() > self.limit {
            drop(state);
            // SAFETY: `alloc` made it with this layout.
            return unsafe { System.dealloc(block, class.block) };
        }
        state.shrink_to(self.limit - class.block.size());
        // SAFETY: `alloc` made it with this layout, and the caller gives it up.
        unsafe { state.push(class, block) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size fits the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Class::of(layout), Class::of(wanted)) {
            // SAFETY: the caller's promise, and `alloc` went to the system too.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            (old, new) if old == new => block,
            // SAFETY: both blocks are valid for the bytes copied and do not overlap.
            _ => unsafe {
                let grown = self.alloc(wanted);
                if !grown.is_null() {
                    grown.copy_from_nonoverlapping(block, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                grown
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).unwrap()
    }

    #[test]
    fn every_class_fits_its_requests_and_wastes_at_most_an_eighth() {
        for size in (LARGE..LARGE * 40).step_by(4093).chain([LARGE, LARGE + 1, 2 * LARGE, 2 * LARGE + 1]) {
            let class = Class::of(layout(size)).unwrap();
            assert!(class.block.size() >= size && class.block.size() <= size + size / 8 + 1, "{size}");
            assert!(class == Class::of(layout(class.block.size())).unwrap());
            assert!(class.index >= FIRST_CLASS);
        }
        assert!(Class::of(layout(LARGE - 1)).is_none());
        assert!(Class::of(Layout::from_size_align(LARGE, 4096).unwrap()).is_none());
    }

    #[test]
    fn a_freed_block_is_used_again_and_zeroed_when_asked() {
        let allocator = CachingAllocator::new(16 << 20);
        unsafe {
            let block = allocator.alloc(layout(3_000_000));
            block.write_bytes(7, 3_000_000);
            allocator.dealloc(block, layout(3_000_000));
            assert!(allocator.cached() >= 3_000_000);
            let again = allocator.alloc_zeroed(layout(2_999_000));
            assert_eq!(again, block);
            assert_eq!(allocator.cached(), 0);
            assert!(std::slice::from_raw_parts(again, 2_999_000).iter().all(|&b| b == 0));
            allocator.dealloc(again, layout(2_999_000));
        }
        allocator.trim();
        assert_eq!(allocator.cached(), 0);
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_the_newest() {
        let allocator = CachingAllocator::new(4 << 20);
        let sizes = [1 << 20, 3 << 20, 2 << 20, 600_000, 5 << 20, 1 << 20];
        unsafe {
            let blocks = sizes.map(|size| allocator.alloc(layout(size)));
            for (block, size) in blocks.into_iter().zip(sizes) {
                allocator.dealloc(block, layout(size));
                assert!(allocator.cached() <= 4 << 20);
            }
            assert_eq!(allocator.alloc(layout(1 << 20)), blocks[5]);
            allocator.dealloc(blocks[5], layout(1 << 20));
        }
        allocator.trim();
    }

    #[test]
    fn blocks_of_many_sizes_do_not_add_up() {
        let allocator = CachingAllocator::new(1 << 30);
        let largest = 8 << 20;
        for size in (1 << 20..=largest).rev().step_by(100_000) {
            unsafe {
                let blocks = [allocator.alloc(layout(size)), allocator.alloc(layout(size))];
                for block in blocks {
                    allocator.dealloc(block, layout(size));
                }
            }
            assert!(allocator.cached() <= 2 * largest * 9 / 8, "{size}: {} bytes", allocator.cached());
        }
        assert!(allocator.cached() >= 2 << 20);
        allocator.trim();
    }

    #[test]
    fn growing_and_shrinking_keep_the_contents() {
        let allocator = CachingAllocator::new(8 << 20);
        let sizes = [100, 200_000, 210_000, 5_000_000, 150_000, 90, 1_000_000];
        unsafe {
            let (mut block, mut size) = (allocator.alloc(layout(50)), 50);
            block.write_bytes(9, 50);
            for new in sizes {
                block = allocator.realloc(block, layout(size), new);
                size = new;
                assert!(std::slice::from_raw_parts(block, 50).iter().all(|&b| b == 9), "{new}");
            }
            allocator.dealloc(block, layout(size));
        }
        allocator.trim();
    }

    #[test]
    fn threads_never_share_a_block() {
        let allocator = CachingAllocator::new(6 << 20);
        std::thread::scope(|scope| {
            for mark in 1..=4u8 {
                let allocator = &allocator;
                scope.spawn(move || {
                    for round in 0..200usize {
                        let size = LARGE + (round * 37_021) % (2 << 20);
                        unsafe {
                            let block = allocator.alloc(layout(size));
                            block.write_bytes(mark, size);
                            std::thread::yield_now();
                            assert!(std::slice::from_raw_parts(block, size).iter().all(|&b| b == mark));
                            allocator.dealloc(block, layout(size));
                        }
                    }
                });
            }
        });
        assert!(allocator.cached() <= 6 << 20);
        allocator.trim();
    }
}
