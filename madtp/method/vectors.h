/* What the C code has in common: vectors of numbers, products of matrices, e^x, softmax, ranks. */

#ifndef MADTP_VECTORS_H
#define MADTP_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* Numbers that the processor adds at once, and the rows and columns of sums that it holds in its registers. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { TOGETHER = 6, TILE = 2 * LANES };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

/* A number in bfloat16, the upper half of a float. */
typedef uint16_t Half;

static inline float float_of(Half number)
{
    uint32_t bits = (uint32_t)number << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The nearest one, of two as near the even one. What is no number stays none. */
static inline Half half_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* The next multiple of TILE. */
static inline int64_t in_tiles(int64_t count)
{
    return (count + TILE - 1) / TILE * TILE;
}

/* `one` where `where` is all bits, `other` where it is none. */
static inline Lanes chosen(Integers where, Lanes one, Lanes other)
{
    return (Lanes)((where & (Integers)one) | (~where & (Integers)other));
}

/* e^x for x <= 0: 2^n e^r with |r| <= ln(2) / 2. NaN stays NaN. Compilers do not make this of a loop over numbers. */
static inline Lanes exponential(Lanes x)
{
    Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
    Lanes whole = __builtin_convertvector(n, Lanes), r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Lanes series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    Integers power = (Integers)(series * (Lanes)((n + 127) << 23));
    return (Lanes)(power & ~(x < -87)); /* 0 where n is out of range */
}

/* Products of matrices, TOGETHER rows of the first at a time, since these share what they read.
 *
 * Fills sums [some, columns], columns a multiple of TILE: row r is the sum over i of factors[r * apart + i * step]
 * times row i of a matrix that lies in tiles, [columns / TILE, count, TILE]. Rows up to the next multiple of TOGETHER
 * are read and filled too.
 */
static inline void products(
    const float *restrict factors, int64_t apart, int64_t step, int64_t some, const float *restrict tiles,
    int64_t count, int64_t columns, float *restrict sums)
{
    for (int64_t start = 0; start < columns; start += TILE)
        for (int64_t first = 0; first < some; first += TOGETHER) {
            const Lanes *own = (const Lanes *)(tiles + start * count);
            Lanes left[TOGETHER] = {0}, right[TOGETHER] = {0};
            for (int64_t row = 0; row < count; row++)
                for (int64_t one = 0; one < TOGETHER; one++) {
                    float factor = factors[(first + one) * apart + row * step];
                    left[one] += factor * own[2 * row];
                    right[one] += factor * own[2 * row + 1];
                }
            for (int64_t one = 0; one < TOGETHER; one++) {
                Lanes *found = (Lanes *)(sums + (first + one) * columns + start);
                found[0] = left[one];
                found[1] = right[one];
            }
        }
}

/* What two rows of a tile add to sums: the products of a pair of factors with pairs of numbers. */
static inline Lanes with_pairs(Lanes sums, const Half factors[2], const Half *pairs)
{
#ifdef __AVX512BF16__
    int32_t both;
    memcpy(&both, factors, sizeof both);
    __m512bh own = (__m512bh)_mm512_set1_epi32(both), others = (__m512bh)_mm512_loadu_si512(pairs);
    return (Lanes)_mm512_dpbf16_ps((__m512)sums, own, others);
#else
    Integers own = *(const Integers *)pairs;
    return sums + float_of(factors[0]) * (Lanes)(own << 16) + float_of(factors[1]) * (Lanes)(own & ~0xffff);
#endif
}

/* As `products` of halves with a step of 1. Two rows of the matrix lie side by side, in tiles of pairs,
 * [columns / TILE, count / 2, TILE, 2], with `count` even. */
static inline void products_of_halves(
    const Half *restrict factors, int64_t apart, int64_t some, const Half *restrict tiles, int64_t count,
    int64_t columns, float *restrict sums)
{
    for (int64_t start = 0; start < columns; start += TILE)
        for (int64_t first = 0; first < some; first += TOGETHER) {
            const Half *own = tiles + start * count;
            Lanes left[TOGETHER] = {0}, right[TOGETHER] = {0};
            for (int64_t row = 0; row < count; row += 2, own += 2 * TILE)
                for (int64_t one = 0; one < TOGETHER; one++) {
                    const Half *pair = factors + (first + one) * apart + row;
                    left[one] = with_pairs(left[one], pair, own);
                    right[one] = with_pairs(right[one], pair, own + TILE);
                }
            for (int64_t one = 0; one < TOGETHER; one++) {
                Lanes *found = (Lanes *)(sums + (first + one) * columns + start);
                found[0] = left[one];
                found[1] = right[one];
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

/* Sum of some numbers; no finite number if one of them is not. */
static inline float sum_of(const float *values, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t place = 0; place < count; place++)
        sum += values[place];
    return sum;
}

/* Softmax of logits [L], filled up to whole tiles by 0. `bias`, if any, is added to them; `mask`, if any, is False
 * where attention may not go, its booleans `step` apart. Returns the sum of e^x / max e^x, which the largest is 1 over. */
static inline float softmax(float *logits, const float *bias, const uint8_t *mask, int64_t step, int64_t length)
{
    int64_t padded = in_tiles(length);
    float largest = -INFINITY, sum = 0;
    for (int64_t token = 0; bias && token < length; token++)
        logits[token] += bias[token];
    for (int64_t token = 0; mask && token < length; token++)
        if (!mask[token * step])
            logits[token] = -INFINITY;
    for (int64_t token = length; token < padded; token++)
        logits[token] = -INFINITY;
    Lanes *own = (Lanes *)logits, sums = {0};
#pragma omp simd reduction(max : largest)
    for (int64_t token = 0; token < padded; token++)
        largest = logits[token] > largest ? logits[token] : largest;
    for (int64_t part = 0; part < padded / LANES; part++) {
        own[part] = exponential(own[part] - largest);
        sums += own[part];
    }
    for (int64_t lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    for (int64_t part = 0; part < padded / LANES; part++)
        own[part] *= 1 / sum;
    return sum;
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
