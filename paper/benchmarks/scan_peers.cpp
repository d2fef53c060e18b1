// The selective scan as a C++ extension of PyTorch: what a good compiler makes of one fused pass, forward and backward.
//
// Symbols and layout "bld" as in kwslib/scan/reference.py; float32. Channels are the vector lanes: a task is a clip and a
// block of W channels, whose state stays in the core's cache. Forward keeps the state before every CHUNK of steps;
// backward recomputes the states of one chunk at a time. Tasks run on PyTorch's own OpenMP threads.
#include <torch/extension.h>
#include <cmath>
#include <cstring>
#include <vector>
#define LANES _Pragma("omp simd") for (int j = 0; j < W; j++)

using torch::Tensor;
constexpr int W = 64, CHUNK = 32, N = 16;  // N: the only size of the state that this peer takes
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
typedef float Row[W];

static inline float exp2_(float x) {  // polynomial on [-0.5, 0.5], relative error 2e-9 beside rounding
  x = x < -126.f ? -126.f : x > 127.f ? 127.f : x;
  float k = x + 12582912.f;  // the sum's low bits hold x rounded to an integer
  int32_t bits;
  std::memcpy(&bits, &k, 4);
  float f = x - (k - 12582912.f), p = 1.53533610e-4f, power;
  p = p * f + 1.33988752e-3f;
  p = p * f + 9.61843737e-3f;
  p = p * f + 5.55033247e-2f;
  p = p * f + 2.40226479e-1f;
  p = p * f + 6.93147203e-1f;
  p = p * f + 1.f;
  bits = int32_t(uint32_t(bits) << 23) + 0x3F800000;
  std::memcpy(&power, &bits, 4);
  return p * power;
}
static inline float sigmoid_(float x) { return 1.f / (1.f + exp2_(-x * LOG2E)); }
static inline float softplus_(float x) {  // max(x, 0) + log1p(e^-|x|), the logarithm as 2 artanh(s)
  float v = exp2_(-std::fabs(x) * LOG2E), s = v / (2.f + v), q = s * s, p = 0.12144787f;
  p = p * q + 0.10715368f;
  p = p * q + 0.14308299f;
  p = p * q + 0.19999444f;
  p = p * q + 0.33333338f;
  return (x > 0.f ? x : 0.f) + 2.f * (s + s * q * p);
}

// Rows of a block of channels: `w` of them are real, the others are zero.
static inline void load(float* row, const float* from, int w) {
  if (w == W) std::memcpy(row, from, sizeof(Row));
  else { std::memset(row, 0, sizeof(Row)); std::memcpy(row, from, w * sizeof(float)); }
}
static inline void store(float* to, const float* row, int w) { std::memcpy(to, row, w * sizeof(float)); }

struct Sizes {
  int64_t b, l, d, blocks, chunks;
  explicit Sizes(const Tensor& u)
      : b(u.size(0)), l(u.size(1)), d(u.size(2)), blocks((d + W - 1) / W), chunks((l + CHUNK - 1) / CHUNK) {}
};

template <class Task>
static void for_each_task(const Sizes& s, Task task) {
  const bool small = s.b * s.l * s.d < 8192;  // takes less time than to wake the other threads
  const int count = small ? 1 : std::min<int64_t>(at::get_num_threads(), s.b * s.blocks);
#pragma omp parallel for num_threads(count) schedule(static) if (count > 1)
  for (int64_t i = 0; i < s.b * s.blocks; i++) task(i / s.blocks, i % s.blocks);
}

static void decays(Row* rate, const float* A, int64_t c, int w) {  // A log2(e), transposed to (N, W)
  std::memset(rate, 0, N * sizeof(Row));
  for (int j = 0; j < w; j++)
    for (int n = 0; n < N; n++) rate[n][j] = A[(c + j) * N + n] * LOG2E;
}

// y (b, l, d); kept: the state before every chunk (b, blocks, chunks, N, W), or null.
static void forward_pass(const Sizes& s, const float* u, const float* delta, const float* A, const float* B, const float* C,
                         const float* D, const float* z, const float* bias, float* y, float* kept) {
  for_each_task(s, [&](int64_t b, int64_t block) {
    const int64_t c = block * W;
    const int w = std::min<int64_t>(W, s.d - c);
    alignas(64) Row rate[N], h[N] = {}, x, dt, gate, skip, shift, du, out;
    decays(rate, A, c, w);
    load(skip, D + c, w);
    load(shift, bias + c, w);
    for (int64_t t = 0; t < s.l; t++) {
      if (kept && t % CHUNK == 0)
        std::memcpy(kept + ((b * s.blocks + block) * s.chunks + t / CHUNK) * N * W, h, sizeof(h));
      const int64_t at = (b * s.l + t) * s.d + c;
      const float *Bt = B + (b * s.l + t) * N, *Ct = C + (b * s.l + t) * N;
      load(x, u + at, w);
      load(dt, delta + at, w);
      load(gate, z + at, w);
      LANES { dt[j] = softplus_(dt[j] + shift[j]); du[j] = dt[j] * x[j]; out[j] = skip[j] * x[j]; }
      for (int n = 0; n < N; n++) {
        const float Bn = Bt[n], Cn = Ct[n];
        LANES { h[n][j] = exp2_(dt[j] * rate[n][j]) * h[n][j] + du[j] * Bn; out[j] += h[n][j] * Cn; }
      }
      LANES out[j] *= gate[j] * sigmoid_(gate[j]);
      store(y + at, out, w);
    }
  });
}

// Gradients of u, delta, z (b, l, d); of B, C by block (blocks, b, l, N); of A (b, d, N), D and bias (b, d) by clip.
static void backward_pass(const Sizes& s, const float* u, const float* delta, const float* A, const float* B, const float* C,
                          const float* D, const float* z, const float* bias, const float* kept, const float* gy, float* gu,
                          float* gdelta, float* gz, float* gA, float* gB, float* gC, float* gD, float* gbias) {
  for_each_task(s, [&](int64_t b, int64_t block) {
    const int64_t c = block * W;
    const int w = std::min<int64_t>(W, s.d - c);
    alignas(64) Row rate[N], gh[N] = {}, grate[N] = {}, skip, shift, gskip = {}, gshift = {}, gate, g, gdu, gdt, part;
    static thread_local std::vector<float> scratch((CHUNK * (2 * N + 5) + N) * W + 16);
    Row* rows = reinterpret_cast<Row*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t(63));
    Row *h = rows, *a = h + (CHUNK + 1) * N, *x = a + CHUNK * N, *raw = x + CHUNK, *dt = raw + CHUNK, *du = dt + CHUNK,
        *out = du + CHUNK;
    decays(rate, A, c, w);
    load(skip, D + c, w);
    load(shift, bias + c, w);
    for (int64_t chunk = s.chunks - 1; chunk >= 0; chunk--) {
      const int64_t first = chunk * CHUNK, steps = std::min<int64_t>(CHUNK, s.l - first);
      std::memcpy(h, kept + ((b * s.blocks + block) * s.chunks + chunk) * N * W, N * sizeof(Row));
      for (int64_t i = 0; i < steps; i++) {  // forward again, keeping states and decays
        const int64_t row = b * s.l + first + i, at = row * s.d + c;
        load(x[i], u + at, w);
        load(raw[i], delta + at, w);
        LANES {
          raw[i][j] += shift[j];
          dt[i][j] = softplus_(raw[i][j]);
          du[i][j] = dt[i][j] * x[i][j];
          out[i][j] = skip[j] * x[i][j];
        }
        for (int n = 0; n < N; n++) {
          const float Bn = B[row * N + n], Cn = C[row * N + n];
          const float* __restrict before = h[i * N + n];
          float *__restrict after = h[(i + 1) * N + n], *__restrict decay = a[i * N + n];
          LANES {
            decay[j] = exp2_(dt[i][j] * rate[n][j]);
            after[j] = decay[j] * before[j] + du[i][j] * Bn;
            out[i][j] += after[j] * Cn;
          }
        }
      }
      for (int64_t i = steps - 1; i >= 0; i--) {
        const int64_t row = b * s.l + first + i, at = row * s.d + c;
        load(gate, z + at, w);
        load(g, gy + at, w);
        LANES {
          const float open = sigmoid_(gate[j]);
          part[j] = g[j] * out[i][j] * open * (1.f + gate[j] * (1.f - open));
          g[j] *= gate[j] * open;
          gdu[j] = gdt[j] = 0.f;
        }
        store(gz + at, part, w);
        for (int n = 0; n < N; n++) {
          const float Bn = B[row * N + n], Cn = C[row * N + n];
          const float *__restrict before = h[i * N + n], *__restrict after = h[(i + 1) * N + n], *__restrict decay = a[i * N + n];
          float gBn = 0.f, gCn = 0.f;
#pragma omp simd reduction(+ : gBn, gCn)
          for (int j = 0; j < W; j++) {
            const float now = gh[n][j] + g[j] * Cn, back = now * decay[j], slope = back * before[j];
            gCn += g[j] * after[j];
            gBn += now * du[i][j];
            gdu[j] += now * Bn;
            gh[n][j] = back;
            gdt[j] += slope * rate[n][j];
            grate[n][j] += slope * dt[i][j];
          }
          gB[((block * s.b + b) * s.l + first + i) * N + n] = gBn;
          gC[((block * s.b + b) * s.l + first + i) * N + n] = gCn;
        }
        LANES {
          gdt[j] = (gdt[j] * LN2 + gdu[j] * x[i][j]) * sigmoid_(raw[i][j]);
          gshift[j] += gdt[j];
          gskip[j] += g[j] * x[i][j];
          part[j] = gdu[j] * dt[i][j] + g[j] * skip[j];
        }
        store(gdelta + at, gdt, w);
        store(gu + at, part, w);
      }
    }
    for (int j = 0; j < w; j++)
      for (int n = 0; n < N; n++) gA[(b * s.d + c + j) * N + n] = grate[n][j];
    store(gD + b * s.d + c, gskip, w);
    store(gbias + b * s.d + c, gshift, w);
  });
}

#define P(t) (t).const_data_ptr<float>()
#define Q(t) (t).mutable_data_ptr<float>()

struct Scan : torch::autograd::Function<Scan> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,
                        Tensor z, Tensor bias) {
    const Sizes s(u);
    Tensor y = at::empty_like(u), kept = at::empty({s.b, s.blocks, s.chunks, N, W}, u.options());
    forward_pass(s, P(u), P(delta), P(A), P(B), P(C), P(D), P(z), P(bias), Q(y), Q(kept));
    ctx->save_for_backward({u, delta, A, B, C, D, z, bias, kept});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grad) {
    const auto v = ctx->get_saved_variables();
    const Tensor &u = v[0], &A = v[2], gy = grad[0].contiguous();
    const Sizes s(u);
    Tensor gu = at::empty_like(u), gdelta = at::empty_like(u), gz = at::empty_like(u);
    Tensor gA = at::empty({s.b, s.d, N}, u.options()), gD = at::empty({s.b, s.d}, u.options()), gbias = at::empty_like(gD);
    Tensor gB = at::empty({s.blocks, s.b, s.l, N}, u.options()), gC = at::empty_like(gB);
    backward_pass(s, P(u), P(v[1]), P(A), P(v[3]), P(v[4]), P(v[5]), P(v[6]), P(v[7]), P(v[8]), P(gy), Q(gu), Q(gdelta), Q(gz),
                  Q(gA), Q(gB), Q(gC), Q(gD), Q(gbias));
    return {gu, gdelta, gA.sum(0), gB.sum(0), gC.sum(0), gD.sum(0), gz, gbias.sum(0)};
  }
};

// Arguments contiguous: u, delta, z (b, l, d); B, C (b, l, 16); A (d, 16); D, bias (d).
Tensor scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor bias) {
  TORCH_CHECK(A.size(1) == N, "this scan takes a state of ", N);
  if (at::GradMode::is_enabled()) return Scan::apply(u, delta, A, B, C, D, z, bias);
  Tensor y = at::empty_like(u);
  forward_pass(Sizes(u), P(u), P(delta), P(A), P(B), P(C), P(D), P(z), P(bias), Q(y), nullptr);
  return y;
}
