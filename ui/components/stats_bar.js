// The bar of live figures: tiles {name, value, unit, title} and the state of the connection.

import { age } from "/static/age_mixin.js";

export default {
  mixins: [age],
  template: `
    <section class="ac-stats-bar" aria-label="Live figures" :class="{stale: outdated}" data-testid="stats-bar">
      <div class="ac-connection" :class="{off: !connected || outdated}" :key="version"><i></i>
        <span>{{ !connected ? 'connecting…' : outdated ? 'stale: ' + age + ' s' : 'live' }}</span></div>
      <dl tabindex="0"><div v-for="tile in tiles" :key="tile.name" :title="tile.title" :data-figure="tile.name">
        <dt>{{ tile.name }}</dt><dd>{{ tile.value }}<small v-if="tile.unit"> {{ tile.unit }}</small></dd>
      </div></dl>
      <a href="/live" class="ac-more">Dashboard</a>
    </section>`,
  props: { tiles: Array, connected: Boolean },
  computed: {
    outdated() {
      return this.tiles.length > 0 && this.stale;
    },
  },
};
