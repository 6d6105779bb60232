/* What the small steps in C have in common: sums in registers, e^x, softmax, ranks. */

#ifndef MADTP_SMALL_H
#define MADTP_SMALL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TOGETHER = 4, TILE = 32 }; /* rows and columns of sums that are held in registers */

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

/* Products of matrices, TOGETHER rows of the first at a time, since these share what they read.
 *
 * Fills sums [TOGETHER, columns], columns a multiple of TILE: row r is the sum over i of factors[r * apart + i * step]
 * times row i of rows [count, columns].
 */
static inline void products(
    const float *restrict factors, int64_t apart, int64_t step, const float *restrict rows, int64_t count,
    int64_t columns, float *restrict sums)
{
    for (int64_t start = 0; start < columns; start += TILE) {
        float tile[TOGETHER][TILE] = {{0}};
        for (int64_t row = 0; row < count; row++)
            for (int64_t one = 0; one < TOGETHER; one++)
                for (int64_t column = 0; column < TILE; column++)
                    tile[one][column] += factors[one * apart + row * step] * rows[row * columns + start + column];
        for (int64_t one = 0; one < TOGETHER; one++)
            memcpy(sums + one * columns + start, tile[one], sizeof tile[one]);
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

/* Sum of some numbers; no finite number if one of them is not. */
static inline float sum_of(const float *values, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t place = 0; place < count; place++)
        sum += values[place];
    return sum;
}

/* Softmax of logits [L], filled up to whole tiles by 0; `mask`, if any, is False where attention may not go; its
 * booleans are `step` apart. */
static inline void softmax(float *logits, float scale, const uint8_t *mask, int64_t step, int64_t length)
{
    int64_t padded = in_tiles(length);
    float largest = -INFINITY, sum = 0;
    for (int64_t token = 0; mask && token < length; token++)
        if (!mask[token * step])
            logits[token] = -INFINITY;
    for (int64_t token = length; token < padded; token++)
        logits[token] = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int64_t token = 0; token < padded; token++)
        largest = logits[token] > largest ? logits[token] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t token = 0; token < padded; token++) {
        logits[token] = exponential((logits[token] - largest) * scale);
        sum += logits[token];
    }
    for (int64_t token = 0; token < padded; token++)
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
