// The CUDA kernels of this crate. Maths and shapes stand with the Rust ops of the same names.
//
// Every kernel takes one struct by value, which `src/launch/args.rs` mirrors. All sums are in f32 and in a fixed
// order. T is float or bf16. The file is also plain C++: `emulator.hpp` gives it threads, blocks and
// barriers on a CPU, where the tests run it. So it keeps to what both know: no warp intrinsics, no headers of CUDA.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define HONE_BITS_TO_FLOAT(x) __uint_as_float(x)
#define HONE_FLOAT_TO_BITS(x) __float_as_uint(x)
#define HONE_INF __int_as_float(0x7f800000)
#endif

struct bf16 {
    unsigned short bits;
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return HONE_BITS_TO_FLOAT((u32)x.bits << 16); }

template <class T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
// To the nearest, ties to even; a NaN stays one.
template <> __device__ inline bf16 narrow<bf16>(float x) {
    u32 bits = HONE_FLOAT_TO_BITS(x);
    bf16 y;
    y.bits = x != x ? (unsigned short)0x7fc0 : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return y;
}

const int MOST_THREADS = 256;

struct Sum {
    __device__ static float start() { return 0.0f; }
    __device__ static float join(float a, float b) { return a + b; }
};
// A NaN wins.
struct Max {
    __device__ static float start() { return -HONE_INF; }
    __device__ static float join(float a, float b) { return a != a || a > b ? a : b; }
};

// The threads' values joined, for all of them. blockDim.x is a power of two.
template <class R> __device__ float reduce(float value) {
    __shared__ float shared[MOST_THREADS];
    __syncthreads();
    shared[threadIdx.x] = value;
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] = R::join(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
    return shared[0];
}

// RMSNorm: a block per row of `cols`.
struct RmsNorm {
    const void *x;
    const float *w;
    void *y;
    u32 cols;
    float eps;
};

template <class T> __device__ void rms_norm(RmsNorm a) {
    const T *x = (const T *)a.x + (u64)blockIdx.x * a.cols;
    T *y = (T *)a.y + (u64)blockIdx.x * a.cols;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) squares += wide(x[i]) * wide(x[i]);
    float r = 1.0f / sqrtf(reduce<Sum>(squares) / a.cols + a.eps);
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) y[i] = narrow<T>(wide(x[i]) * r * a.w[i]);
}

struct RmsNormBackward {
    const void *x;
    const float *w;
    const void *g;
    void *dx;
    u32 cols;
    float eps;
};

template <class T> __device__ void rms_norm_backward(RmsNormBackward a) {
    u64 row = (u64)blockIdx.x * a.cols;
    const T *x = (const T *)a.x + row, *g = (const T *)a.g + row;
    T *dx = (T *)a.dx + row;
    float squares = 0.0f, along = 0.0f;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) {
        float xi = wide(x[i]);
        squares += xi * xi;
        along += wide(g[i]) * a.w[i] * xi;
    }
    float r = 1.0f / sqrtf(reduce<Sum>(squares) / a.cols + a.eps);
    float mean = reduce<Sum>(along) / a.cols * r * r;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x)
        dx[i] = narrow<T>(r * (wide(g[i]) * a.w[i] - wide(x[i]) * mean));
}

// Rotary positions: a block per token. `cosine` and `sine` are (tokens, half); `sign` is -1 to turn back.
struct Rope {
    const void *x;
    const float *cosine;
    const float *sine;
    void *y;
    u32 cols;
    u32 head;
    u32 half;
    float sign;
};

template <class T> __device__ void rope(Rope a) {
    u64 row = (u64)blockIdx.x * a.cols;
    const T *x = (const T *)a.x + row;
    T *y = (T *)a.y + row;
    const float *cosine = a.cosine + (u64)blockIdx.x * a.half, *sine = a.sine + (u64)blockIdx.x * a.half;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) {
        u32 at = i % a.head;
        if (at < a.half)
            y[i] = narrow<T>(wide(x[i]) * cosine[at] - wide(x[i + a.half]) * sine[at] * a.sign);
        else if (at < 2 * a.half)
            y[i] = narrow<T>(wide(x[i]) * cosine[at - a.half] + wide(x[i - a.half]) * sine[at - a.half] * a.sign);
        else
            y[i] = x[i];
    }
}

// Gated activations: a thread per element. `gelu` chooses the gate's function, silu or gelu in its tanh form.
struct Glu {
    const void *gate;
    const void *up;
    const void *g;
    void *y;
    void *dup;
    u64 count;
    u32 gelu;
};

const float GELU = 0.7978845608028654f, GELU_CUBE = 0.044715f;

// The sigmoid whose product with z is the function; `slope` of its argument by z.
__device__ inline float gate_sigmoid(u32 gelu, float z, float *slope) {
    float argument = gelu ? 2.0f * GELU * z * (1.0f + GELU_CUBE * z * z) : z;
    *slope = gelu ? 2.0f * GELU * (1.0f + 3.0f * GELU_CUBE * z * z) : 1.0f;
    return 1.0f / (1.0f + expf(-argument));
}

template <class T> __device__ void glu(Glu a) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float z = wide(((const T *)a.gate)[i]), slope;
    ((T *)a.y)[i] = narrow<T>(gate_sigmoid(a.gelu, z, &slope) * z * wide(((const T *)a.up)[i]));
}

// Writes the gate's gradient to `y`.
template <class T> __device__ void glu_backward(Glu a) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float z = wide(((const T *)a.gate)[i]), g = wide(((const T *)a.g)[i]), slope;
    float sigmoid = gate_sigmoid(a.gelu, z, &slope);
    float derivative = sigmoid + z * sigmoid * (1.0f - sigmoid) * slope;
    ((T *)a.y)[i] = narrow<T>(derivative * g * wide(((const T *)a.up)[i]));
    ((T *)a.dup)[i] = narrow<T>(g * z * sigmoid);
}

// Loss of a row of logits, and its gradient times `factor` where `gradient` is not null: a block per row.
// `cap` bounds the logits; 0 does not. `factors` is 1, or 0 when all rows share the factor.
struct SoftmaxLoss {
    const void *logits;
    const u32 *targets;
    const float *factor;
    float *losses;
    void *gradient;
    u32 cols;
    u32 factors;
    float cap;
};

__device__ inline float capped(float z, float cap) { return cap > 0.0f ? cap * tanhf(z / cap) : z; }
__device__ inline float cap_slope(float capped, float cap) {
    return cap > 0.0f ? 1.0f - (capped / cap) * (capped / cap) : 1.0f;
}

template <class T> __device__ void softmax_loss(SoftmaxLoss a) {
    const T *logits = (const T *)a.logits + (u64)blockIdx.x * a.cols;
    float max = -HONE_INF;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) max = Max::join(capped(wide(logits[i]), a.cap), max);
    max = reduce<Max>(max);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) sum += expf(capped(wide(logits[i]), a.cap) - max);
    float lse = max + logf(reduce<Sum>(sum));
    u32 target = a.targets[blockIdx.x];
    if (threadIdx.x == 0) a.losses[blockIdx.x] = lse - capped(wide(logits[target]), a.cap);
    if (!a.gradient) return;
    T *gradient = (T *)a.gradient + (u64)blockIdx.x * a.cols;
    float factor = a.factor[a.factors ? blockIdx.x : 0];
    for (u32 i = threadIdx.x; i < a.cols; i += blockDim.x) {
        float z = capped(wide(logits[i]), a.cap);
        float slope = expf(z - lse) - (i == target ? 1.0f : 0.0f);
        gradient[i] = narrow<T>(slope * factor * cap_slope(z, a.cap));
    }
}

// Rows of attention scores `q kT`, not scaled yet: a block per row. The rows are the queries `first_query ..
// first_query + queries` of a sequence, again for every head; the columns its keys from `first_key` on. A query sees
// keys up to its own where `causal`, and then only the last `window` of them, unless that is 0.
struct Attention {
    const void *scores;
    const void *dp;
    float *lse;
    const float *delta;
    void *p;
    void *ds;
    u32 queries;
    u32 keys;
    u32 first_query;
    u32 first_key;
    u32 causal;
    u32 window;
    float scale;
    float cap;
};

struct Seen {
    u32 from, to;
};

// Columns that the block's query sees.
__device__ inline Seen seen(const Attention &a) {
    Seen s;
    s.from = 0;
    s.to = a.keys;
    if (a.causal) {
        u32 query = a.first_query + blockIdx.x % a.queries;
        s.to = query + 1 - a.first_key;
        u32 first = a.window && query + 1 > a.window ? query + 1 - a.window : 0;
        s.from = first > a.first_key ? first - a.first_key : 0;
    }
    return s;
}

// Probabilities and log-sum-exp.
template <class T> __device__ void attention_softmax(Attention a) {
    const T *scores = (const T *)a.scores + (u64)blockIdx.x * a.keys;
    T *p = (T *)a.p + (u64)blockIdx.x * a.keys;
    Seen s = seen(a);
    float max = -HONE_INF;
    for (u32 i = s.from + threadIdx.x; i < s.to; i += blockDim.x)
        max = Max::join(capped(wide(scores[i]) * a.scale, a.cap), max);
    max = reduce<Max>(max);
    float sum = 0.0f;
    for (u32 i = s.from + threadIdx.x; i < s.to; i += blockDim.x)
        sum += expf(capped(wide(scores[i]) * a.scale, a.cap) - max);
    sum = reduce<Sum>(sum);
    for (u32 i = threadIdx.x; i < a.keys; i += blockDim.x)
        p[i] = i < s.from || i >= s.to ? narrow<T>(0.0f)
                                       : narrow<T>(expf(capped(wide(scores[i]) * a.scale, a.cap) - max) / sum);
    if (threadIdx.x == 0) a.lse[blockIdx.x] = max + logf(sum);
}

// The probabilities again, and the gradient of the unscaled scores given that of the probabilities.
template <class T> __device__ void attention_backward(Attention a) {
    u64 row = (u64)blockIdx.x * a.keys;
    const T *scores = (const T *)a.scores + row, *dp = (const T *)a.dp + row;
    T *p = (T *)a.p + row, *ds = (T *)a.ds + row;
    Seen s = seen(a);
    float lse = a.lse[blockIdx.x], delta = a.delta[blockIdx.x];
    for (u32 i = threadIdx.x; i < a.keys; i += blockDim.x) {
        if (i < s.from || i >= s.to) {
            p[i] = ds[i] = narrow<T>(0.0f);
            continue;
        }
        float score = capped(wide(scores[i]) * a.scale, a.cap);
        float weight = expf(score - lse);
        p[i] = narrow<T>(weight);
        ds[i] = narrow<T>(weight * (wide(dp[i]) - delta) * cap_slope(score, a.cap) * a.scale);
    }
}

// Dropout: a thread per element; see `portable::dropout` for the mask.
struct Dropout {
    const void *x;
    void *y;
    u64 count;
    u64 key;
    u64 threshold;
    float keep;
};

template <class T> __device__ void dropout(Dropout a) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    u64 z = a.key + (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    ((T *)a.y)[i] = narrow<T>((z >> 11) < a.threshold ? 0.0f : wide(((const T *)a.x)[i]) * a.keep);
}

// AdamW: a thread per element. What is written may be what is read.
struct AdamW {
    const float *p;
    const float *g;
    const float *m;
    const float *v;
    float *new_p;
    float *new_m;
    float *new_v;
    u64 count;
    float clip, shrink, beta1, beta2, epsilon, step_size, root2;
};

__device__ inline void adamw_update(AdamW a) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float g = a.g[i] * a.clip;
    float m = a.m[i] + (1.0f - a.beta1) * (g - a.m[i]);
    float v = a.beta2 * a.v[i] + (1.0f - a.beta2) * g * g;
    a.new_m[i] = m;
    a.new_v[i] = v;
    a.new_p[i] = a.p[i] * a.shrink - a.step_size * m / (sqrtf(v) / a.root2 + a.epsilon);
}

#ifdef __CUDACC__
#define KERNEL(name, Args, body) \
    extern "C" __global__ void name(Args a) { body(a); }
#else
#define KERNEL(name, Args, body) \
    extern "C" void name(u32 grid, u32 block, const void *a) { hone_run(grid, block, [=] { body(*(const Args *)a); }); }
#endif
#define KERNELS(name, Args) \
    KERNEL(name##_f32, Args, name<float>) \
    KERNEL(name##_bf16, Args, name<bf16>)

KERNELS(rms_norm, RmsNorm)
KERNELS(rms_norm_backward, RmsNormBackward)
KERNELS(rope, Rope)
KERNELS(glu, Glu)
KERNELS(glu_backward, Glu)
KERNELS(softmax_loss, SoftmaxLoss)
KERNELS(attention_softmax, Attention)
KERNELS(attention_backward, Attention)
KERNELS(dropout, Dropout)
KERNEL(adamw_f32, AdamW, adamw_update)
