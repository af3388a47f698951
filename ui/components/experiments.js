// Experiments: the plan; of each arm the policy, users, metric and other figures, and its difference to the control, drawn
// on a scale with 0 in the middle.

export default {
  template: `
    <div class="ac-experiments" data-testid="experiments">
      <p v-if="!experiments.length" class="ac-empty">{{ notice }}</p>
      <article v-for="e in experiments" :key="e.name" :data-experiment="e.name" :data-state="e.running ? 'running' : 'stopped'" :class="{broken: e.broken}">
        <header><h3>{{ e.name }}</h3><span>{{ e.when }}</span><span v-if="e.note">{{ e.note }}</span></header>
        <p data-figure="plan">{{ e.plan }}</p>
        <div class="ac-feed" tabindex="0" role="region" :aria-label="'Arms of ' + e.name">
          <table class="ac-small-table">
            <thead><tr><th scope="col">arm</th><th scope="col">policy</th><th scope="col" class="num">planned</th><th scope="col" class="num">users</th>
              <th scope="col" class="num">lists seen</th><th scope="col" class="num">fallback lists</th><th scope="col" class="num">{{ e.metric }}</th>
              <th scope="col" colspan="2">difference to control ({{ e.level }} interval)</th><th scope="col">other figures</th></tr></thead>
            <tbody><tr v-for="arm in e.arms" :key="arm.name" :data-arm="arm.name">
              <th scope="row">{{ arm.name }}</th><td>{{ arm.policy }}</td><td class="num">{{ arm.share }}</td><td class="num">{{ arm.users }}</td>
              <td class="num" data-figure="lists">{{ arm.lists }}</td><td class="num" data-figure="fallbacks">{{ arm.fallbacks }}</td>
              <td class="num" data-figure="mean">{{ arm.mean || "-" }}</td>
              <td class="ac-interval" aria-hidden="true"><i v-if="arm.bar" :style="{left: arm.bar.low + '%', width: (arm.bar.high - arm.bar.low) + '%'}"></i><b v-if="arm.bar" :style="{left: arm.bar.value + '%'}"></b></td>
              <td data-figure="difference"><b v-if="arm.decision" :class="'is-' + arm.decision">{{ arm.decision }}</b> {{ arm.difference }}</td><td>{{ arm.others || "-" }}</td></tr></tbody>
          </table>
        </div>
        <p class="ac-ratio" data-figure="ratio">{{ e.ratio }}</p>
      </article>
    </div>`,
  props: { experiments: Array, notice: String },
};
