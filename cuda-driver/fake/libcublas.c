// A cuBLAS for tests: the functions that we use, on the CPU. A product is put on its stream of the
// driver for tests (`libcuda.c`), and reads and writes when that runs. Each output is summed in f32, over
// k in order, in one part or two as the number of columns has it, and rounded once.
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// As in cublas_api.h and library_types.h.
enum status { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum operation { NORMAL = 0, TRANSPOSED = 1 };
enum type { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum compute { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69 };
enum { VERSION = 130000, WORKSPACE_ALIGNMENT = 256 };

// How a stream of the driver for tests begins.
struct stream {
  void (*call)(struct stream *stream, void (*function)(void *data), void *data);
};

struct handle {
  struct stream *stream;
};

struct matrix {
  uint8_t *at;
  enum type type;
  bool is_transposed;
  size_t leading;
};

struct product {
  size_t m, n, k;
  float alpha, beta;
  struct matrix a, b, c;
};

static size_t bytes_of(enum type type) { return type == R_32F ? 4 : 2; }

static float number_at(enum type type, const uint8_t *from) {
  if (type == R_32F) {
    float x;
    return memcpy(&x, from, sizeof x), x;
  }
  if (type == R_16F) {
    _Float16 x;
    return memcpy(&x, from, sizeof x), x;
  }
  uint16_t half;
  memcpy(&half, from, sizeof half);
  uint32_t bits = (uint32_t)half << 16;
  float x;
  return memcpy(&x, &bits, sizeof x), x;
}

static void store(float x, enum type type, uint8_t *to) {
  if (type == R_32F) {
    memcpy(to, &x, sizeof x);
  } else if (type == R_16F) {
    _Float16 rounded = x;
    memcpy(to, &rounded, sizeof rounded);
  } else {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t rounded = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    memcpy(to, &rounded, sizeof rounded);
  }
}

// Numbers that are `stride` elements apart, as f32. The compiler makes a loop of each type.
static void widen(float *to, size_t to_stride, const uint8_t *from, enum type type, size_t stride, size_t count) {
  if (type == R_32F)
    for (size_t i = 0; i < count; i++) to[i * to_stride] = number_at(R_32F, from + i * stride * 4);
  else if (type == R_16F)
    for (size_t i = 0; i < count; i++) to[i * to_stride] = number_at(R_16F, from + i * stride * 2);
  else
    for (size_t i = 0; i < count; i++) to[i * to_stride] = number_at(R_16BF, from + i * stride * 2);
}

// Outputs of a column that are summed side by side, and columns.
enum { OUTPUTS = 16, COLUMNS = 4 };
typedef float outputs __attribute__((vector_size(OUTPUTS * sizeof(float))));

// sums[column] = a [k, OUTPUTS] * b [COLUMNS, k], over a part of k in order.
static void sum_up(outputs *sums, const outputs *a, const float *b, size_t k, size_t from, size_t to) {
  outputs first = {0}, second = {0}, third = {0}, fourth = {0};
  for (size_t i = from; i < to; i++) {
    first += a[i] * b[i];
    second += a[i] * b[k + i];
    third += a[i] * b[2 * k + i];
    fourth += a[i] * b[3 * k + i];
  }
  sums[0] = first, sums[1] = second, sums[2] = third, sums[3] = fourth;
}

// Element (row, column) of what the product takes.
static const uint8_t *element(const struct matrix *matrix, size_t row, size_t column) {
  size_t at = matrix->is_transposed ? column + row * matrix->leading : row + column * matrix->leading;
  return matrix->at + at * bytes_of(matrix->type);
}

static void multiply(void *data) {
  const struct product *p = data;
  size_t columns = (p->n + COLUMNS - 1) / COLUMNS * COLUMNS;
  outputs *a = aligned_alloc(sizeof(outputs), (p->k + 1) * sizeof(outputs));
  float *b = calloc(columns * p->k + 1, sizeof *b);
  if (!a || !b) abort();
  // Along k, elements of a transposed matrix are consecutive.
  for (size_t column = 0; column < p->n; column++)
    widen(b + column * p->k, 1, element(&p->b, 0, column), p->b.type, p->b.is_transposed ? p->b.leading : 1, p->k);
  memset(a, 0, (p->k + 1) * sizeof *a);
  for (size_t row = 0; row < p->m; row += OUTPUTS) {
    size_t rows = p->m - row < OUTPUTS ? p->m - row : OUTPUTS;
    if (p->a.is_transposed)
      for (size_t i = 0; i < rows; i++)
        widen((float *)a + i, OUTPUTS, element(&p->a, row + i, 0), p->a.type, 1, p->k);
    else
      for (size_t i = 0; i < p->k; i++) widen((float *)(a + i), 1, element(&p->a, row, i), p->a.type, 1, rows);
    for (size_t column = 0; column < columns; column += COLUMNS) {
      outputs sums[COLUMNS];
      // As in the library, the shape decides how sums are cut.
      size_t cut = p->n % 64 ? p->k / (1 + p->n % 5) : p->k;
      outputs more[COLUMNS];
      sum_up(sums, a, b + column * p->k, p->k, 0, cut);
      sum_up(more, a, b + column * p->k, p->k, cut, p->k);
      for (size_t j = 0; j < COLUMNS; j++) sums[j] += more[j];
      for (size_t j = 0; j < COLUMNS && column + j < p->n; j++) {
        for (size_t i = 0; i < rows; i++) {
          uint8_t *to = (uint8_t *)element(&p->c, row + i, column + j);
          float sum = p->alpha * sums[j][i];
          // C is not read for nothing: it may hold NaN.
          if (p->beta != 0.0f) sum += p->beta * number_at(p->c.type, to);
          store(sum, p->c.type, to);
        }
      }
    }
  }
  free(a);
  free(b);
}

// ---- The functions of cublas_v2.h ----

enum status cublasCreate_v2(struct handle **handle) {
  if (!handle) return INVALID_VALUE;
  *handle = calloc(1, sizeof **handle);
  return *handle ? SUCCESS : ALLOC_FAILED;
}

enum status cublasDestroy_v2(struct handle *handle) {
  if (!handle) return NOT_INITIALIZED;
  free(handle);
  return SUCCESS;
}

enum status cublasSetStream_v2(struct handle *handle, struct stream *stream) {
  if (!handle) return NOT_INITIALIZED;
  handle->stream = stream;
  return SUCCESS;
}

enum status cublasSetWorkspace_v2(struct handle *handle, void *workspace, size_t bytes) {
  if (!handle) return NOT_INITIALIZED;
  return (uintptr_t)workspace % WORKSPACE_ALIGNMENT || (bytes && !workspace) ? INVALID_VALUE : SUCCESS;
}

enum status cublasSetMathMode(struct handle *handle, int mode) {
  if (!handle) return NOT_INITIALIZED;
  // The low bits are a mode, bit 4 a wish not to reduce in a lower precision.
  return mode < 0 || (mode & ~16) > 4 ? INVALID_VALUE : SUCCESS;
}

enum status cublasGetVersion_v2(struct handle *handle, int *version) {
  if (!handle) return NOT_INITIALIZED;
  if (!version) return INVALID_VALUE;
  *version = VERSION;
  return SUCCESS;
}

const char *cublasGetStatusString(enum status status) {
  switch (status) {
    case SUCCESS: return "success";
    case NOT_INITIALIZED: return "the handle was not created";
    case ALLOC_FAILED: return "out of memory";
    case INVALID_VALUE: return "an argument is invalid";
    case NOT_SUPPORTED: return "not supported";
  }
  return "an unknown status";
}

static bool is_type(enum type type) { return type == R_32F || type == R_16F || type == R_16BF; }

static bool is_operation(int operation) { return operation == NORMAL || operation == TRANSPOSED; }

enum status cublasGemmEx(struct handle *handle, int a_operation, int b_operation, int m, int n, int k,
                         const void *alpha, const void *a, enum type a_type, int a_leading, const void *b,
                         enum type b_type, int b_leading, const void *beta, void *c, enum type c_type, int c_leading,
                         enum compute compute, int algorithm) {
  (void)algorithm;
  if (!handle) return NOT_INITIALIZED;
  if (!is_operation(a_operation) || !is_operation(b_operation) || m < 0 || n < 0 || k < 0) return INVALID_VALUE;
  // As they are stored.
  int a_rows = a_operation == NORMAL ? m : k, b_rows = b_operation == NORMAL ? k : n;
  if (a_leading < (a_rows > 1 ? a_rows : 1) || b_leading < (b_rows > 1 ? b_rows : 1) || c_leading < (m > 1 ? m : 1))
    return INVALID_VALUE;
  if (!alpha || !beta) return INVALID_VALUE;
  if (!is_type(a_type) || a_type != b_type || (c_type != a_type && c_type != R_32F)) return NOT_SUPPORTED;
  if (compute != COMPUTE_32F && compute != COMPUTE_32F_PEDANTIC) return NOT_SUPPORTED;
  if (m == 0 || n == 0) return SUCCESS;
  if (!a || !b || !c) return INVALID_VALUE;
  // cuBLAS would take the default stream, which we never mean.
  if (!handle->stream) return INVALID_VALUE;
  struct product *product = malloc(sizeof *product);
  if (!product) return ALLOC_FAILED;
  *product = (struct product){
      .m = m, .n = n, .k = k, .alpha = *(const float *)alpha, .beta = *(const float *)beta,
      .a = {(uint8_t *)a, a_type, a_operation == TRANSPOSED, a_leading},
      .b = {(uint8_t *)b, b_type, b_operation == TRANSPOSED, b_leading},
      .c = {c, c_type, false, c_leading},
  };
  handle->stream->call(handle->stream, multiply, product);
  return SUCCESS;
}
