/* Scores and pruning of a few short sequences on a CPU, a call each: what madtp.method.pruning does step by step.
 *
 * Shapes: B batch, H heads, N prunable tokens, L = N + 1 with the class token in front, E width of a head, D of tokens,
 * K learnable tokens, k tokens kept. All arrays lie row by row.
 */

#include "small.h"

static const float EPSILON = 1e-8f;
enum { NOTHING_PRUNED = -1, NOT_FINITE = -2 };

/* What a sample's queries are held against: of every head the keys as columns [H, E, P] and the values [H, L, W], P and
 * W the length and the width of a head, filled up to whole tiles by zeros. */
typedef struct {
    float *keys, *values;
    int64_t heads, length, width, padded, wide;
} Sequence;

/* Reads keys and values, their heads and tokens `strides` numbers apart. */
static void read(Sequence own, const float *key, const float *value, const int64_t strides[3])
{
    for (int64_t head = 0; head < own.heads; head++)
        for (int64_t token = 0; token < own.length; token++) {
            int64_t start = head * strides[1] + token * strides[2];
            float *column = own.keys + head * own.width * own.padded + token;
            for (int64_t channel = 0; channel < own.width; channel++)
                column[channel * own.padded] = key[start + channel];
            memcpy(own.values + (head * own.length + token) * own.wide, value + start, own.width * sizeof(float));
        }
}

/* Attends from `count` queries, at most TOGETHER, that stand from `token` on, their heads and tokens `strides` apart.
 *
 * Fills output [count, H, E], the queries' largest weights of any head [count, P] and what the class token pays to each
 * of them [count], weighted by heads; keeps the class token's weights [H, P] in `first`.
 */
static void attend_block(
    Sequence own, const float *query, const int64_t strides[3], const uint8_t *mask, const int64_t steps[4],
    int64_t token, int64_t count, float *first, float *output, float *largest, float *paid)
{
    float asked[TOGETHER * own.width], weights[TOGETHER * own.padded], mixed[TOGETHER * own.wide];
    float total[TOGETHER] = {0}, weighted[TOGETHER] = {0};
    memset(asked, 0, sizeof asked);
    memset(largest, 0, count * own.padded * sizeof(float));
    for (int64_t head = 0; head < own.heads; head++) {
        for (int64_t one = 0; one < count; one++)
            memcpy(asked + one * own.width, query + head * strides[1] + (token + one) * strides[2],
                   own.width * sizeof(float));
        products(asked, own.width, 1, own.keys + head * own.width * own.padded, own.width, own.padded, weights);
        for (int64_t one = 0; one < count; one++)
            softmax(weights + one * own.padded, 1 / sqrtf(own.width),
                    mask ? mask + head * steps[1] + (token + one) * steps[2] : NULL, steps[3], own.length);
        if (token == 0)
            memcpy(first + head * own.padded, weights, own.padded * sizeof(float));
        products(weights, own.padded, 1, own.values + head * own.length * own.wide, own.length, own.wide, mixed);
        for (int64_t one = 0; one < count; one++) {
            float size = sqrtf(dot(mixed + one * own.wide, mixed + one * own.wide, own.width));
            weighted[one] += size * first[head * own.padded + token + one];
            total[one] += size;
            memcpy(output + (one * own.heads + head) * own.width, mixed + one * own.wide, own.width * sizeof(float));
        }
        for (int64_t place = 0; place < count * own.padded; place++) { /* NaN is larger than all numbers */
            int larger = weights[place] > largest[place] || weights[place] != weights[place];
            largest[place] = larger ? weights[place] : largest[place];
        }
    }
    for (int64_t one = 0; one < count; one++)
        paid[one] = weighted[one] / (total[one] + EPSILON);
}

/* Self-attention with its scores.
 *
 * query, key and value [B, H, L, E], their samples, heads and tokens `strides` numbers apart; `mask` NULL or booleans
 * whose samples, heads, queries and keys are `steps` apart. Fills output [B, L, H, E] and the scores of the prunable
 * tokens, [B, N] each: the sum over the prunable queries of the largest weight of any head, and what the class token
 * pays, each head weighted by its share in the token's output norm. Returns 0, or 1 where there is no memory.
 */
int madtp_attend(
    const float *query, const float *key, const float *value, const int64_t strides[3], const uint8_t *mask,
    const int64_t steps[4], int64_t batch, int64_t heads, int64_t length, int64_t width, float *output,
    float *self_attention, float *cls_attention)
{
    int64_t tokens = length - 1, padded = in_tiles(length), wide = in_tiles(width);
    float *keys = calloc(heads * (width * padded + length * wide + padded) + TOGETHER * padded, sizeof(float));
    if (!keys)
        return 1;
    Sequence own = {keys, keys + heads * width * padded, heads, length, width, padded, wide};
    float *first = own.values + heads * length * wide, *largest = first + heads * padded, paid[TOGETHER] = {0};
    memset(self_attention, 0, batch * tokens * sizeof(float));
    for (int64_t sample = 0; sample < batch; sample++) {
        int64_t start = sample * strides[0];
        read(own, key + start, value + start, strides);
        for (int64_t token = 0; token < length; token += TOGETHER) {
            int64_t count = length - token < TOGETHER ? length - token : TOGETHER;
            attend_block(own, query + start, strides, mask ? mask + sample * steps[0] : NULL, steps, token, count,
                         first, output + (sample * length + token) * heads * width, largest, paid);
            for (int64_t one = token == 0; one < count; one++) {
                cls_attention[sample * tokens + token + one - 1] = paid[one];
                for (int64_t other = 0; other < tokens; other++)
                    self_attention[sample * tokens + other] += largest[one * padded + other + 1];
            }
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
    if (batch < 1 || tokens < 2)
        return NOTHING_PRUNED;
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
