// Runs the kernels on a CPU: the threads of a block as contexts that take turns at each barrier, blocks one after the
// other. Slow, the same every time, and with the bounds of shared memory. For tests only.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __device__
#define __shared__ static
#define HONE_INF std::numeric_limits<float>::infinity()

static inline float HONE_BITS_TO_FLOAT(unsigned int x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
static inline unsigned int HONE_FLOAT_TO_BITS(float x) {
    unsigned int y;
    std::memcpy(&y, &x, 4);
    return y;
}

struct Index {
    unsigned int x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static const size_t STACK = 64 << 10;
struct Fiber {
    jmp_buf at;
    bool done;
    std::vector<char> stack;
};
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static ucontext_t starter;
static unsigned int current;
static const std::function<void()> *work;

// Waits until every thread of the block is here.
static void __syncthreads() {
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

static void fiber_main() {
    // Made; goes on when its turn comes.
    if (!_setjmp(fibers[current].at)) setcontext(&starter);
    (*work)();
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}

static void hone_run(unsigned int grid, unsigned int block, const std::function<void()> &body) {
    work = &body;
    gridDim.x = grid;
    blockDim.x = block;
    if (fibers.size() < block) fibers.resize(block);
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
        for (current = 0; current < block; current++) {
            Fiber &fiber = fibers[current];
            fiber.done = false;
            fiber.stack.resize(STACK);
            volatile bool made = false;
            getcontext(&starter);
            if (made) continue;
            made = true;
            ucontext_t context;
            getcontext(&context);
            context.uc_stack.ss_sp = fiber.stack.data();
            context.uc_stack.ss_size = STACK;
            context.uc_link = nullptr;
            makecontext(&context, fiber_main, 0);
            setcontext(&context);
        }
        volatile bool left = true;
        while (left) {
            left = false;
            for (current = 0; current < block; current++) {
                if (fibers[current].done) continue;
                threadIdx.x = current;
                if (!_setjmp(scheduler)) _longjmp(fibers[current].at, 1);
                if (!fibers[current].done) left = true;
            }
        }
    }
}
