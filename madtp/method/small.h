/* What the small steps in C have in common: sums in registers, e^x, softmax, ranks. */

#ifndef MADTP_SMALL_H
#define MADTP_SMALL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 32 }; /* sums that are held in registers */

/* The next multiple of TILE. */
static inline int64_t in_tiles(int64_t count)
{
    return (count + TILE - 1) / TILE * TILE;
}

/* e^x for x <= 0, in a form that compilers make vectors of: 2^n e^r with |r| <= ln(2) / 2. NaN stays NaN. */
static inline float exponential(float x)
{
    float bounded = x > -87 ? x : -87; /* a number, for n */
    int32_t n = (int32_t)(bounded * 1.44269504f - 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    union { int32_t bits; float value; } power = {(n + 127) << 23};
    return x < -87 ? 0 : power.value * series;
}

/* sums [columns] of rows [count, columns], `stride` numbers apart, each times its factor; columns in register tiles. */
static inline void weighted_sum(
    const float *restrict factors, const float *restrict rows, int64_t stride, int64_t count, int64_t columns,
    float *restrict sums)
{
    for (int64_t start = 0; start < columns; start += TILE) {
        float tile[TILE] = {0};
        if (start + TILE <= columns) {
            for (int64_t row = 0; row < count; row++)
                for (int64_t column = 0; column < TILE; column++)
                    tile[column] += factors[row] * rows[row * stride + start + column];
            memcpy(sums + start, tile, sizeof tile);
        } else {
            for (int64_t row = 0; row < count; row++)
                for (int64_t column = start; column < columns; column++)
                    tile[column - start] += factors[row] * rows[row * stride + column];
            memcpy(sums + start, tile, (columns - start) * sizeof(float));
        }
    }
}

/* Sum of the products of two vectors. */
static inline float dot(const float *one, const float *other, int64_t width)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t place = 0; place < width; place++)
        sum += one[place] * other[place];
    return sum;
}

/* Softmax of logits [L]; `mask`, if any, is False where attention may not go, its booleans `step` apart. */
static inline void softmax(float *logits, float scale, const uint8_t *mask, int64_t step, int64_t length)
{
    float largest = -INFINITY, sum = 0;
    for (int64_t token = 0; mask && token < length; token++)
        if (!mask[token * step])
            logits[token] = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int64_t token = 0; token < length; token++)
        largest = logits[token] > largest ? logits[token] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t token = 0; token < length; token++) {
        logits[token] = exponential((logits[token] - largest) * scale);
        sum += logits[token];
    }
    for (int64_t token = 0; token < length; token++)
        logits[token] /= sum;
}

/* How many come before a place when the largest value is first and equal ones keep their order. Knows no NaN. */
static inline int32_t rank_of(const float *values, int64_t count, int64_t place)
{
    int32_t before = 0;
    for (int64_t other = 0; other < place; other++)
        before += values[other] >= values[place];
    for (int64_t other = place; other < count; other++)
        before += values[other] > values[place];
    return before;
}

#endif
