/* Scores and pruning of a few short sequences on a CPU, a call each: what madtp.method.pruning does step by step.
 *
 * Shapes: B batch, H heads, N prunable tokens, L = N + 1 with the class token in front, E width of a head, D of tokens,
 * K learnable tokens, k tokens kept. All arrays lie row by row.
 */

#include "small.h"

static const float EPSILON = 1e-8f;
enum { NOTHING_PRUNED = -1, NOT_FINITE = -2 };

/* rows [count, columns], `stride` numbers apart, to turned [columns, count], `turned_stride` apart. */
static void transpose(
    const float *rows, int64_t stride, int64_t count, int64_t columns, float *turned, int64_t turned_stride)
{
    for (int64_t row = 0; row < count; row++)
        for (int64_t column = 0; column < columns; column++)
            turned[column * turned_stride + row] = rows[row * stride + column];
}

/* Self-attention with its scores.
 *
 * query, key and value [B, H, L, E], their samples, heads and tokens `strides` numbers apart; `mask` NULL or booleans
 * whose samples, queries and keys are `steps` apart. Fills output [B, L, H, E] and the scores of the prunable tokens,
 * [B, N] each: the sum over the prunable queries of the largest weight of any head, and what the class token pays, each
 * head weighted by its share in the token's output norm. Returns 0, or 1 where there is no memory.
 */
int madtp_attend(
    const float *query, const float *key, const float *value, const int64_t strides[3], const uint8_t *mask,
    const int64_t steps[3], int64_t batch, int64_t heads, int64_t length, int64_t width, float *output,
    float *self_attention, float *cls_attention)
{
    int64_t padded = in_tiles(length);
    float *keys = calloc((heads * width + heads + 2) * padded, sizeof(float)); /* [H, E, L], rows filled up by zeros */
    if (!keys)
        return 1;
    float *first = keys + heads * width * padded, *largest = first + heads * padded, *weights = largest + padded;
    memset(self_attention, 0, batch * (length - 1) * sizeof(float));
    float scale = 1 / sqrtf(width);
    for (int64_t sample = 0; sample < batch; sample++) {
        float *sums = self_attention + sample * (length - 1);
        for (int64_t head = 0; head < heads; head++)
            transpose(key + sample * strides[0] + head * strides[1], strides[2], length, width,
                      keys + head * width * padded, padded);
        for (int64_t token = 0; token < length; token++) {
            const uint8_t *allowed = mask ? mask + sample * steps[0] + token * steps[1] : NULL;
            float weighted = 0, total = 0;
            memset(largest, 0, length * sizeof(float));
            for (int64_t head = 0; head < heads; head++) {
                int64_t start = sample * strides[0] + head * strides[1];
                float *row = token ? weights : first + head * padded;
                float *mixed = output + ((sample * length + token) * heads + head) * width;
                const float *asked = query + start + token * strides[2];
                weighted_sum(asked, keys + head * width * padded, padded, width, padded, row);
                softmax(row, scale, allowed, steps[2], length);
                weighted_sum(row, value + start, strides[2], length, width, mixed);
                float size = sqrtf(dot(mixed, mixed, width));
                weighted += size * first[head * padded + token];
                total += size;
                for (int64_t other = 0; other < length; other++) { /* NaN is larger than all numbers */
                    int larger = row[other] > largest[other] || row[other] != row[other];
                    largest[other] = larger ? row[other] : largest[other];
                }
            }
            for (int64_t other = 1; token && other < length; other++)
                sums[other - 1] += largest[other];
            if (token)
                cls_attention[sample * (length - 1) + token - 1] = weighted / (total + EPSILON);
        }
    }
    free(keys);
    return 0;
}

/* Adds values / (their sum + 1e-8) to what is found already. */
static void add_share(const float *values, int64_t count, float *found)
{
    double sum = EPSILON;
    for (int64_t token = 0; token < count; token++)
        sum += values[token];
    for (int64_t token = 0; token < count; token++)
        found[token] += values[token] / sum;
}

/* S = (S_self + S_token + S_cls) / 3 of one sample, [N]. */
static void importance(
    const float *self_attention, const float *cls_attention, const float *alignment, int64_t tokens,
    int64_t learnable, float *significance)
{
    float nearest[tokens];
    for (int64_t token = 0; token < tokens; token++) {
        const float *row = alignment + token * learnable;
        nearest[token] = row[0];
        for (int64_t one = 1; one < learnable; one++)
            nearest[token] = row[one] > nearest[token] ? row[one] : nearest[token];
    }
    memcpy(significance, cls_attention, tokens * sizeof(float));
    add_share(self_attention, tokens, significance);
    add_share(nearest, tokens, significance);
    for (int64_t token = 0; token < tokens; token++)
        significance[token] /= 3;
}

/* theta = min over k of sum_j softmax_j(a[j, k] / T) S[j] of one sample; NaN where one of them is no finite number. */
static double threshold(
    const float *significance, const float *alignment, double temperature, int64_t tokens, int64_t learnable)
{
    float largest[learnable], sums[learnable], totals[learnable];
    memcpy(largest, alignment, sizeof largest);
    memset(sums, 0, sizeof sums);
    memset(totals, 0, sizeof totals);
    for (int64_t token = 1; token < tokens; token++)
        for (int64_t one = 0; one < learnable; one++) {
            float value = alignment[token * learnable + one];
            largest[one] = value > largest[one] ? value : largest[one];
        }
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t one = 0; one < learnable; one++) {
            float power = exponential((alignment[token * learnable + one] - largest[one]) / (float)temperature);
            totals[one] += power;
            sums[one] += power * significance[token];
        }
    double least = INFINITY;
    for (int64_t one = 0; one < learnable; one++) {
        double found = sums[one] / totals[one];
        if (!isfinite(found))
            return NAN;
        least = fmin(least, found);
    }
    return least;
}

/* Class token, kept tokens in their order and the merged one of one sample, and the rows that they were in. */
static void shorten(
    const float *x, const float *significance, const float *ranked, int64_t tokens, int64_t width, int64_t keep,
    int64_t *rows, float *shortened)
{
    float *merged = shortened + (keep + 1) * width;
    double sum = EPSILON;
    int dropped[tokens];
    int64_t place = 0;
    rows[0] = 0;
    for (int64_t token = 0; token < tokens; token++) {
        int64_t rank = rank_of(ranked, tokens, token);
        dropped[token] = rank >= keep;
        if (dropped[token])
            sum += significance[token];
        else
            rows[++place] = token + 1;
        if (rank == keep)
            rows[keep + 1] = token + 1;
    }
    for (place = 0; place <= keep; place++)
        memcpy(shortened + place * width, x + rows[place] * width, width * sizeof(float));
    memset(merged, 0, width * sizeof(float));
    for (int64_t token = 0; token < tokens; token++)
        if (dropped[token]) {
            float weight = significance[token] / sum;
            for (int64_t channel = 0; channel < width; channel++)
                merged[channel] += weight * x[(token + 1) * width + channel];
        }
}

/* prune_tokens for a temperature above 0.
 *
 * x [B, L, D]; scores [B, N]; alignment [B, N, K], its samples `stride` numbers apart; `protected` [B] or NULL.
 * Returns k, and fills rows [B, k + 2] and shortened [B, k + 2, D]; or returns NOTHING_PRUNED, or NOT_FINITE if the
 * numbers are not, so that neither a threshold nor ranks make sense.
 */
int64_t madtp_prune(
    const float *x, const float *self_attention, const float *cls_attention, const float *alignment, int64_t stride,
    const int64_t *protected, double temperature, int64_t min_keep, int64_t batch, int64_t tokens, int64_t width,
    int64_t learnable, int64_t *rows, float *shortened)
{
    float significance[batch][tokens], ranked[batch][tokens];
    int64_t keep = 0;
    for (int64_t sample = 0; sample < batch; sample++) {
        const float *own = alignment + sample * stride;
        importance(self_attention + sample * tokens, cls_attention + sample * tokens, own, tokens, learnable,
                   significance[sample]);
        double least = threshold(significance[sample], own, temperature, tokens, learnable);
        if (isnan(least))
            return NOT_FINITE;
        memcpy(ranked[sample], significance[sample], sizeof ranked[sample]);
        if (protected)
            ranked[sample][protected[sample]] = INFINITY;
        int64_t passing = 0;
        for (int64_t token = 0; token < tokens; token++)
            passing += ranked[sample][token] > least;
        keep = passing > keep ? passing : keep;
    }
    if (keep < min_keep || tokens - keep <= 1)
        return NOTHING_PRUNED;
    for (int64_t sample = 0; sample < batch; sample++)
        shorten(x + sample * (tokens + 1) * width, significance[sample], ranked[sample], tokens, width, keep,
                rows + sample * (keep + 2), shortened + sample * (keep + 2) * width);
    return keep;
}
