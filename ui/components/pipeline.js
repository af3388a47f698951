// The stages of the pipeline: `stations` {name, what, rows: [[label, value, title]]} and the `flows`
// {label, value, speed, rate, title} between them. Dots move along an arrow faster at a higher rate; at 0 they stop.

import { age } from "/static/age_mixin.js";

export default {
  mixins: [age],
  template: `
    <ol class="ac-pipeline" :class="{stale}" data-testid="pipeline" aria-label="The pipeline, from the log to the viewers">
      <template v-for="(station, n) in stations" :key="station.name">
        <li class="ac-station">
          <h2>{{ station.name }} <b v-if="stale" class="ac-stale">stale</b></h2>
          <p>{{ station.what }}</p>
          <dl><div v-for="row in station.rows" :key="row[0]" :title="row[2]" :data-row="row[0]"><dt>{{ row[0] }}</dt><dd>{{ row[1] }}</dd></div></dl>
        </li>
        <li v-if="flows[n]" class="ac-flow" :class="{still: stale || !flows[n].rate}" :style="{'--pace': pace(flows[n].rate)}" :title="flows[n].title" :data-flow="flows[n].label">
          <span class="ac-flow-rate">{{ flows[n].speed }}</span>
          <span class="ac-flow-line" aria-hidden="true"><i></i><i></i><i></i></span>
          <span class="ac-flow-value">{{ flows[n].value }}</span>
          <span class="ac-flow-label">{{ flows[n].label }} p50 / p99</span>
        </li>
      </template>
    </ol>`,
  props: { stations: Array, flows: Array },
  methods: {
    pace(rate) {
      return Math.max(0.35, 2.4 - Math.log10(1 + (rate || 0)) * 0.7) + "s";
    },
  },
};
