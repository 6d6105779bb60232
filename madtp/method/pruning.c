/* Pruning of a few short sequences on a CPU, one call: what madtp.method.pruning does step by step.
 *
 * Shapes: B batch, N prunable tokens, L = N + 1 with the class token in front, D width, K learnable tokens, k tokens
 * kept. All arrays lie row by row.
 */

#include "vectors.h"

static const float EPSILON = 1e-8f;
enum { NOTHING_PRUNED = -1, NOT_FINITE = -2 };

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
    int64_t parts = in_tiles(learnable) / LANES;
    Lanes row[parts], largest[parts], sums[parts], totals[parts];
    memset(row, 0, sizeof row);
    memset(sums, 0, sizeof sums);
    memset(totals, 0, sizeof totals);
    for (int64_t token = 0; token < tokens; token++) {
        memcpy(row, alignment + token * learnable, learnable * sizeof(float));
        for (int64_t part = 0; part < parts; part++)
            largest[part] = token ? chosen(row[part] > largest[part], row[part], largest[part]) : row[part];
    }
    for (int64_t token = 0; token < tokens; token++) {
        memcpy(row, alignment + token * learnable, learnable * sizeof(float));
        for (int64_t part = 0; part < parts; part++) {
            Lanes power = exponential((row[part] - largest[part]) / (float)temperature);
            totals[part] += power;
            sums[part] += power * significance[token];
        }
    }
    double least = INFINITY;
    for (int64_t one = 0; one < learnable; one++) {
        double found = ((float *)sums)[one] / ((float *)totals)[one];
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
