/* Self-attention on a CPU in single precision and in bfloat16; see attention.h. */

#include "vectors.h"

enum { BLOCK = 4 * TOGETHER }; /* queries that share what is read of keys and values */
static const float EPSILON = 1e-8f;

/* Where attention may go, and what is added to its logits: booleans whose samples, heads, queries and keys are `steps`
 * apart, and numbers [B, L]; each NULL if there is none. */
typedef struct {
    const uint8_t *mask;
    const int64_t *steps;
    const float *bias;
} Allowed;

static inline void products_of_floats(
    const float *factors, int64_t apart, int64_t some, const float *tiles, int64_t count, int64_t columns, float *sums)
{
    products(factors, apart, 1, some, tiles, count, columns, sums);
}

static inline void rounded_of_floats(const float *values, int64_t count, float scale, float *numbers)
{
    for (int64_t one = 0; one < count; one++)
        numbers[one] = scale * values[one];
}

static inline void rounded_of_halves(const float *values, int64_t count, float scale, Half *numbers)
{
    for (int64_t one = 0; one < count; one++)
        numbers[one] = half_of(scale * values[one]);
}

#define Number float
#define STEP 1
#define OF(name) name##_of_floats
#include "attention.h"
#undef Number
#undef STEP
#undef OF
#define Number Half
#define STEP 2
#define OF(name) name##_of_halves
#include "attention.h"

/* Whether threads are made use of. */
int madtp_threads(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
